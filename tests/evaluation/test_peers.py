"""Methods of kvpress on a tiny model: what they keep, and that it is what kvpress itself keeps."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from fastgen_vllm.evaluation.dense import DenseModel, Head, Prefill
from fastgen_vllm.evaluation.peers import INSTALL, PEERS, compress, require_kvpress
from tests.integration.tiny import random_prompts

pytest.importorskip("kvpress", reason="the peers are optional")

ROOT = Path(__file__).parents[2]
LENGTH, CONTINUATION = 311, 12
KEEPS = [0.25, 0.5, 0.9]
RAGGED = [peer for peer in PEERS if peer.startswith("AdaKV")]
EVEN = [peer for peer in PEERS if peer not in RAGGED]
#: Largest difference of two log-probabilities, from one token at a time to all at once.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def dense(tiny_base: Path) -> DenseModel:
    return DenseModel(tiny_base)


@pytest.fixture(scope="module")
def text() -> tuple[list[int], list[int]]:
    prompt, continuation = random_prompts([LENGTH, CONTINUATION], seed=31)
    return prompt, continuation


@pytest.fixture(scope="module")
def prefill(dense: DenseModel, text: tuple[list[int], list[int]]) -> Prefill:
    return dense.prefill(text[0])


def held(heads: list[list[Head]]) -> Tensor:
    """[L, H] int64, kept tokens."""
    return torch.tensor([[len(head.keys) for head in layer] for layer in heads])


def positions(head: Head, everything: Head) -> list[int]:
    """Which of a prompt's tokens a head keeps; every key of the random model is another one."""
    matches = (head.keys[:, None] == everything.keys[None]).all(-1)
    assert (matches.sum(-1) == 1).all(), "a key is not one of the prompt's"
    found = matches.int().argmax(-1)
    assert torch.equal(head.values, everything.values[found]), "keys and values are mixed up"
    return sorted(found.tolist())


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("peer", EVEN)
def test_every_head_keeps_the_asked_share(
    peer: str, keep: float, dense: DenseModel, prefill: Prefill
) -> None:
    kept = held(compress(peer, keep, dense.model, prefill))
    assert (kept == kept[0, 0]).all()
    assert abs(int(kept[0, 0]) - int(keep * LENGTH)) <= 1


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("peer", RAGGED)
def test_ada_heads_keep_the_asked_share_together(
    peer: str, keep: float, dense: DenseModel, prefill: Prefill
) -> None:
    """Layer by layer; heads differ, and none has less than a fifth of its share."""
    kept = held(compress(peer, keep, dense.model, prefill))
    num_heads = kept.shape[1]
    assert ((kept.sum(-1) - num_heads * int(keep * LENGTH)).abs() <= num_heads).all()
    assert (kept[:, 0] != kept[:, 1]).any(), "no layer is ragged"
    assert (kept >= int(0.2 * int(keep * LENGTH))).all()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("peer", PEERS)
def test_kept_tokens_are_tokens_of_the_prompt(
    peer: str, keep: float, dense: DenseModel, prefill: Prefill
) -> None:
    for layer, whole in zip(
        compress(peer, keep, dense.model, prefill), prefill.heads(), strict=True
    ):
        for head, everything in zip(layer, whole, strict=True):
            found = positions(head, everything)
            assert len(set(found)) == len(found)


@pytest.mark.parametrize("keep", KEEPS)
def test_streaming_llm_keeps_first_and_recent(
    keep: float, dense: DenseModel, prefill: Prefill
) -> None:
    heads = compress("StreamingLLM", keep, dense.model, prefill)
    for layer, whole in zip(heads, prefill.heads(), strict=True):
        for head, everything in zip(layer, whole, strict=True):
            recent = len(head.keys) - 4
            expected = [0, 1, 2, 3, *range(LENGTH - recent, LENGTH)]
            assert positions(head, everything) == expected


@pytest.mark.parametrize("peer", ["SnapKV", "AdaKV SnapKV"])
def test_snap_kv_keeps_its_window(peer: str, dense: DenseModel, prefill: Prefill) -> None:
    for layer, whole in zip(
        compress(peer, 0.5, dense.model, prefill), prefill.heads(), strict=True
    ):
        for head, everything in zip(layer, whole, strict=True):
            window = set(range(LENGTH - 64, LENGTH))
            # AdaKV guarantees a head a fifth of its share only.
            if peer == "SnapKV":
                assert window <= set(positions(head, everything))
            else:
                assert len(window & set(positions(head, everything))) >= 31


def test_methods_differ(dense: DenseModel, prefill: Prefill) -> None:
    kept = {
        tuple(
            tuple(positions(head, everything))
            for layer, whole in zip(
                compress(peer, 0.5, dense.model, prefill), prefill.heads(), strict=True
            )
            for head, everything in zip(layer, whole, strict=True)
        )
        for peer in PEERS
    }
    assert len(kept) == len(PEERS)


def test_methods_leave_no_trace(
    dense: DenseModel, prefill: Prefill, text: tuple[list[int], list[int]]
) -> None:
    """Each decides the same whatever ran before it, and the model stays what it was."""
    before = dense.follow(prefill, prefill.heads(), text[1])
    first = {peer: compress(peer, 0.25, dense.model, prefill) for peer in PEERS}
    for peer in reversed(PEERS):
        for layer, other in zip(
            compress(peer, 0.25, dense.model, prefill), first[peer], strict=True
        ):
            for head, same in zip(layer, other, strict=True):
                assert torch.equal(head.keys, same.keys)
    assert torch.equal(dense.follow(prefill, prefill.heads(), text[1]), before)
    again = dense.prefill(text[0])
    assert torch.equal(again.last, prefill.last)


def test_scores_may_be_shared(dense: DenseModel, prefill: Prefill) -> None:
    """By all methods and kept shares of one prompt, as the evaluation does."""
    scores: dict[tuple[str, Any], Tensor] = {}
    for peer in PEERS:
        for keep in (0.9, 0.1, 0.5):
            shared = compress(peer, keep, dense.model, prefill, scores)
            anew = compress(peer, keep, dense.model, prefill)
            for layer, other in zip(shared, anew, strict=True):
                for head, same in zip(layer, other, strict=True):
                    assert torch.equal(head.keys, same.keys)
    assert scores


@pytest.mark.parametrize("peer", PEERS)
def test_decoding_equals_that_of_kvpress(
    peer: str, dense: DenseModel, prefill: Prefill, text: tuple[list[int], list[int]]
) -> None:
    """kvpress's own way: hooks during the prefill, then one token after the other."""
    heads = compress(peer, 0.25, dense.model, prefill)
    followed = dense.follow(prefill, heads, text[1])
    theirs = decode_with_kvpress(peer, 0.25, dense.model, *text)
    assert float((followed - theirs).abs().max()) <= CLOSE
    full = dense.follow(prefill, prefill.heads(), text[1])
    assert float((followed - full).abs().max()) > 1000 * CLOSE, "nothing was compressed"


@torch.no_grad()
def decode_with_kvpress(
    peer: str, keep: float, model: Any, prompt: list[int], continuation: list[int]
) -> Tensor:
    """[T, V] log-probabilities before each token."""
    kvpress = require_kvpress()
    name = peer.removeprefix("AdaKV ")
    options = {"epsilon": 1e-2} if peer == "AdaKV ExpectedAttention" else {}
    press = getattr(kvpress, f"{name}Press")(compression_ratio=1 - keep, **options)
    if peer != name:
        press = kvpress.AdaKVPress(press)
    cache = DynamicCache()
    places = torch.arange(len(prompt))
    with press(model):
        output = model(torch.tensor([prompt]), past_key_values=cache, cache_position=places)
    rows = [output.logits[0, -1]]
    for place, token in enumerate(continuation[:-1], start=len(prompt)):
        output = model(
            torch.tensor([[token]]),
            past_key_values=cache,
            cache_position=torch.tensor([place]),
            position_ids=torch.tensor([[place]]),
        )
        rows.append(output.logits[0, -1])
    return torch.stack(rows).float().log_softmax(-1)


def test_missing_kvpress_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(ValueError, match=r"--peers needs kvpress: run `make setup`"):
        require_kvpress()


def test_the_commands_that_install_kvpress_exist() -> None:
    (target,) = re.findall(r"`make (\w+)`", INSTALL)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (requirements,) = re.findall(r"-r (\S+)`", INSTALL)
    assert "kvpress==" in (ROOT / requirements).read_text()
