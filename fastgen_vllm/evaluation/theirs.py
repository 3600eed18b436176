"""Passages and questions through the methods of others."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastgen_vllm.evaluation.contexts import Context
from fastgen_vllm.evaluation.dense import DenseModel, Head
from fastgen_vllm.evaluation.dialogue import Dialogue
from fastgen_vllm.evaluation.kvzip import REQUEST
from fastgen_vllm.evaluation.measure import Item, Method, answer, divergence
from fastgen_vllm.evaluation.peers import PEERS, Peers
from fastgen_vllm.evaluation.results import Results
from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.evaluation.tasks import Problem
from fastgen_vllm.evaluation.texts import tokenize


def measure_peers(
    model: str, tokenizer: Any, items: Sequence[Item], settings: Settings
) -> Iterator[tuple[Item, Results]]:
    """Yield the rows of every item, as soon as they are there.

    One prefill of a prompt serves all methods, because they decide when it is over; what one
    method keeps serves all questions about the prompt.
    """
    dense = DenseModel(model, getattr(torch, settings.dtype))
    request = tokenize(tokenizer, REQUEST) + Dialogue.of(tokenizer).after
    for item in items:
        assert not isinstance(item, Problem), "peers do not generate"
        forced = (
            [question.forced for question in item.questions]
            if isinstance(item, Context)
            else [item.forced]
        )
        rows = Results()
        prefill = dense.prefill(item.prompt)
        peers = Peers(dense, prefill, request)
        full = dense.follow_each(prefill, prefill.heads(), forced)
        for method in (Method(name, share) for name in PEERS for share in settings.keep):
            assert method.target is not None, "every peer has a share"
            heads = peers.compress(method.name, method.target)
            kept = _kept_share(heads, prefill.num_tokens)
            said = dense.follow_each(prefill, heads, forced)
            if isinstance(item, Context):
                for number, pair in enumerate(zip(full, said, strict=True)):
                    rows.retrieval.append(answer(method, item, number, kept, *pair))
            else:
                rows.divergence.append(divergence(method, item, kept, full[0], said[0]))
        yield item, rows


def _kept_share(heads: list[list[Head]], num_tokens: int) -> float:
    kept = [len(head.keys) for layer in heads for head in layer]
    return sum(kept) / (len(kept) * num_tokens)
