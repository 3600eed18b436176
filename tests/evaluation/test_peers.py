"""Methods of others on tiny models: what they keep, and that kvpress itself keeps the same."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from fastgen_vllm.evaluation.dense import DenseModel, Head, Prefill
from fastgen_vllm.evaluation.peers import PEERS, Peers
from fastgen_vllm.evaluation.presses import INSTALL, PRESSES, require_kvpress
from fastgen_vllm.evaluation.statistics import KVPRESS
from tests.integration.tiny import random_prompts, save_tiny_qwen2

pytest.importorskip("kvpress", reason="the peers are optional")

ROOT = Path(__file__).parents[2]
LENGTH, CONTINUATION = 311, 12
KEEPS = [0.25, 0.5, 0.9]
#: Which heads share a budget.
LAYERS_TOGETHER = ["peer Layer-DefensiveKV", "bound KVzip"]
RAGGED = [peer for peer in PEERS if "AdaKV" in peer or peer == "peer DefensiveKV"]
PYRAMID = "kvpress PyramidKV"  # every layer has another budget
EVEN = [peer for peer in PEERS if peer not in (*RAGGED, *LAYERS_TOGETHER, PYRAMID)]
REQUEST = [7, 8, 9]  # stands for the request to repeat
#: Largest difference of two log-probabilities, from one token at a time to all at once.
CLOSE = 1e-4


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def dense(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> DenseModel:
    """Both share KV heads among query heads; Qwen2 has biases, and no head size in its options."""
    if request.param == "llama":
        return DenseModel(tiny_base)
    model = DenseModel(save_tiny_qwen2(tmp_path_factory.mktemp("models") / "qwen2"))
    del model.model.config.head_dim
    return model


@pytest.fixture(scope="module")
def text() -> tuple[list[int], list[int]]:
    prompt, continuation = random_prompts([LENGTH, CONTINUATION], seed=31)
    return prompt, continuation


@pytest.fixture(scope="module")
def prefill(dense: DenseModel, text: tuple[list[int], list[int]]) -> Prefill:
    return dense.prefill(text[0])


@pytest.fixture(scope="module")
def peers(dense: DenseModel, prefill: Prefill) -> Peers:
    return Peers(dense, prefill, REQUEST)


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
def test_every_head_keeps_the_asked_share(peer: str, keep: float, peers: Peers) -> None:
    kept = held(peers.compress(peer, keep))
    assert (kept == kept[0, 0]).all()
    assert abs(int(kept[0, 0]) - int(keep * LENGTH)) <= 1


@pytest.mark.parametrize("keep", KEEPS)
def test_layers_of_a_pyramid_keep_the_asked_share_together(keep: float, peers: Peers) -> None:
    kept = held(peers.compress(PYRAMID, keep))
    assert abs(int(kept.sum()) - keep * LENGTH * kept.numel()) <= kept.numel()
    assert (kept == kept[:, :1]).all() and (kept.diff(dim=0) <= 0).all()
    if keep == 0.5:
        assert len(set(kept[:, 0].tolist())) > 1, "no layer has another budget"


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("peer", RAGGED)
def test_heads_of_a_layer_keep_the_asked_share_together(
    peer: str, keep: float, peers: Peers
) -> None:
    """Heads differ, and with AdaKV none has less than a fifth of its share."""
    kept = held(peers.compress(peer, keep))
    num_heads = kept.shape[1]
    assert ((kept.sum(-1) - num_heads * int(keep * LENGTH)).abs() <= num_heads).all()
    assert (kept[:, 0] != kept[:, 1]).any(), "no layer is ragged"
    if "AdaKV" in peer:
        assert (kept >= int(0.2 * int(keep * LENGTH))).all()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("peer", LAYERS_TOGETHER)
def test_all_heads_keep_the_asked_share_together(peer: str, keep: float, peers: Peers) -> None:
    kept = held(peers.compress(peer, keep))
    assert int(kept.sum()) == int(keep * LENGTH * kept.numel())
    assert len(set(kept.sum(-1).tolist())) > 1, "layers have the same"


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("peer", PEERS)
def test_kept_tokens_are_tokens_of_the_prompt(
    peer: str, keep: float, peers: Peers, prefill: Prefill
) -> None:
    for layer, whole in zip(peers.compress(peer, keep), prefill.heads(), strict=True):
        for head, everything in zip(layer, whole, strict=True):
            found = positions(head, everything)
            assert len(set(found)) == len(found)


@pytest.mark.parametrize("keep", KEEPS)
def test_streaming_llm_keeps_first_and_recent(keep: float, peers: Peers, prefill: Prefill) -> None:
    heads = peers.compress("kvpress StreamingLLM", keep)
    for layer, whole in zip(heads, prefill.heads(), strict=True):
        for head, everything in zip(layer, whole, strict=True):
            recent = len(head.keys) - 4
            expected = [0, 1, 2, 3, *range(LENGTH - recent, LENGTH)]
            assert positions(head, everything) == expected


WINDOWS = {
    "kvpress SnapKV": 64,
    "kvpress PyramidKV": 64,
    "peer AhaKV": 32,
    "peer DefensiveKV": 32,
    "peer Layer-DefensiveKV": 32,
}


@pytest.mark.parametrize("peer", [*WINDOWS, "kvpress AdaKV SnapKV"])
def test_a_window_is_kept(peer: str, peers: Peers, prefill: Prefill) -> None:
    for layer, whole in zip(peers.compress(peer, 0.5), prefill.heads(), strict=True):
        for head, everything in zip(layer, whole, strict=True):
            kept = set(positions(head, everything))
            if peer in WINDOWS:
                assert set(range(LENGTH - WINDOWS[peer], LENGTH)) <= kept
            else:  # AdaKV guarantees a head a fifth of its share only
                assert len(set(range(LENGTH - 64, LENGTH)) & kept) >= 31


def test_methods_differ(peers: Peers, prefill: Prefill) -> None:
    kept = {
        tuple(
            tuple(positions(head, everything))
            for layer, whole in zip(peers.compress(peer, 0.5), prefill.heads(), strict=True)
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
    peers = Peers(dense, prefill, REQUEST)
    first = {peer: peers.compress(peer, 0.25) for peer in PEERS}
    again = Peers(dense, prefill, REQUEST)
    for peer in reversed(PEERS):
        assert_same(again.compress(peer, 0.25), first[peer])
    assert torch.equal(dense.follow(prefill, prefill.heads(), text[1]), before)
    assert torch.equal(dense.prefill(text[0]).last, prefill.last)


@pytest.mark.parametrize("peer", PEERS)
def test_what_was_asked_before_changes_nothing(
    peer: str, dense: DenseModel, prefill: Prefill, peers: Peers
) -> None:
    """Scores are shared by all methods and kept shares of one prompt."""
    for keep in (0.9, 0.1, 0.5):
        anew = Peers(dense, prefill, REQUEST)
        assert_same(peers.compress(peer, keep), anew.compress(peer, keep))


def assert_same(one: list[list[Head]], other: list[list[Head]]) -> None:
    for layer, same_layer in zip(one, other, strict=True):
        for head, same in zip(layer, same_layer, strict=True):
            assert torch.equal(head.keys, same.keys)


@pytest.mark.parametrize("press", PRESSES)
def test_decoding_equals_that_of_kvpress(
    press: str, dense: DenseModel, prefill: Prefill, text: tuple[list[int], list[int]], peers: Peers
) -> None:
    """kvpress's own way: hooks during the prefill, then one token after the other."""
    heads = peers.compress(f"{KVPRESS}{press}", 0.25)
    followed = dense.follow(prefill, heads, text[1])
    theirs = decode_with_kvpress(press, 0.25, dense.model, *text)
    assert float((followed - theirs).abs().max()) <= CLOSE
    full = dense.follow(prefill, prefill.heads(), text[1])
    assert float((followed - full).abs().max()) > 1000 * CLOSE, "nothing was compressed"


@torch.no_grad()
def decode_with_kvpress(
    name: str, keep: float, model: Any, prompt: list[int], continuation: list[int]
) -> Tensor:
    """[T, V] log-probabilities before each token."""
    kvpress = require_kvpress()
    around, name = name.split(" ") if " " in name else ("", name)
    options: dict[str, Any] = {}
    if around and name == "ExpectedAttention":
        options = {"epsilon": 1e-2, "use_vnorm": around == "AdaKV"}
    press = getattr(kvpress, f"{name}Press")(compression_ratio=1 - keep, **options)
    if around:
        press = getattr(kvpress, f"{around}Press")(press)
    cache = DynamicCache()
    places = torch.arange(len(prompt))

    def seed(module: Any, _args: Any) -> None:
        torch.manual_seed(module.layer_idx)  # Compactor draws a sketch in every layer

    hooks = [layer.self_attn.register_forward_pre_hook(seed) for layer in model.model.layers]
    try:
        with press(model):
            output = model(torch.tensor([prompt]), past_key_values=cache, cache_position=places)
    finally:
        for hook in hooks:
            hook.remove()
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
