"""Passages and questions through the methods of kvpress."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen_vllm.evaluation.dense import DenseModel, Head, Prefill
from fastgen_vllm.evaluation.measure import Item, Method, answer, divergence
from fastgen_vllm.evaluation.peers import PEERS, compress
from fastgen_vllm.evaluation.results import Results
from fastgen_vllm.evaluation.retrieval import Question
from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.evaluation.tasks import Problem


def measure_peers(
    model: str, items: Sequence[Item], settings: Settings
) -> Iterator[tuple[Item, Results]]:
    """Yield the rows of every item, as soon as they are there.

    One prefill of a prompt serves all methods, because they decide when it is over.
    """
    dense = DenseModel(model, getattr(torch, settings.dtype))
    for item in items:
        assert not isinstance(item, Problem), "peers do not generate"
        rows = Results()
        prefill = dense.prefill(item.prompt)
        if isinstance(item, Question):
            for method, kept, said in _compressed(dense, prefill, item.reply, settings.keep):
                rows.retrieval.append(answer(method, item, kept, said))
        else:
            full = dense.follow(prefill, prefill.heads(), item.continuation)
            for method, kept, said in _compressed(dense, prefill, item.continuation, settings.keep):
                rows.divergence.append(divergence(method, item, kept, full, said))
        yield item, rows


def _compressed(
    dense: DenseModel, prefill: Prefill, forced: list[int], shares: Sequence[float]
) -> Iterator[tuple[Method, float, Tensor]]:
    """Yield every method, its kept share and its [T, V] log-probabilities before forced tokens."""
    scores: dict[tuple[str, Any], Tensor] = {}
    for peer in PEERS:
        for share in shares:
            heads = compress(peer, share, dense.model, prefill, scores)
            kept = _kept_share(heads, prefill.num_tokens)
            yield Method(f"kvpress {peer}", share), kept, dense.follow(prefill, heads, forced)


def _kept_share(heads: list[list[Head]], num_tokens: int) -> float:
    kept = [len(head.keys) for layer in heads for head in layer]
    return sum(kept) / (len(kept) * num_tokens)
