"""Passages and questions through the methods of kvpress."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen_vllm.evaluation.dense import DenseModel, Head
from fastgen_vllm.evaluation.measure import Item, Method, answer, divergence
from fastgen_vllm.evaluation.peers import PEERS, compress, require_kvpress
from fastgen_vllm.evaluation.results import Results
from fastgen_vllm.evaluation.retrieval import Question
from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.evaluation.tasks import Problem


def measure_peers(
    model: str, items: Sequence[Item], settings: Settings
) -> Iterator[tuple[Item, Results]]:
    """Yield the rows of every item, as soon as they are there.

    One prefill of a prompt serves all methods, because they decide when it is over.

    Raises:
        ValueError: kvpress is not installed.
    """
    require_kvpress()
    dense = DenseModel(model, getattr(torch, settings.dtype))
    methods = [(peer, share) for peer in PEERS for share in settings.keep]
    for item in items:
        assert not isinstance(item, Problem), "peers do not generate"
        rows = Results()
        forced = item.reply if isinstance(item, Question) else item.continuation
        prefill = dense.prefill(item.prompt)
        full = dense.follow(prefill, prefill.heads(), forced)
        scores: dict[tuple[str, Any], Tensor] = {}
        for peer, share in methods:
            heads = compress(peer, share, dense.model, prefill, scores)
            compressed = dense.follow(prefill, heads, forced)
            method, kept = Method(f"kvpress {peer}", share), _kept_share(heads, len(item.prompt))
            if isinstance(item, Question):
                rows.retrieval.append(answer(method, item, kept, compressed))
            else:
                rows.divergence.append(divergence(method, item, kept, full, compressed))
        yield item, rows


def _kept_share(heads: list[list[Head]], num_tokens: int) -> float:
    kept = [len(head.keys) for layer in heads for head in layer]
    return sum(kept) / (len(kept) * num_tokens)
