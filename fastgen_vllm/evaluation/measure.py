"""From log-probabilities to rows: the same for the engine and for other libraries."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgen_vllm.evaluation.contexts import REPLY_TOKENS, Context
from fastgen_vllm.evaluation.results import Divergence, Retrieval
from fastgen_vllm.evaluation.statistics import FULL
from fastgen_vllm.evaluation.tasks import Problem
from fastgen_vllm.evaluation.texts import Passage
from fastgen_vllm.request import ENABLED

Item = Passage | Context | Problem


class Method(NamedTuple):
    """One way to treat a prompt's cache."""

    name: str
    target: float | None = None  # nominal kept share
    arguments: tuple[tuple[str, Any], ...] = ()  # of requests to our engine


_PROBLEM_TOKENS = 4096  # most of any benchmark's problem and its answer

UNCOMPRESSED = Method(FULL, arguments=((ENABLED, "off"),))


def item_name(item: Item) -> str:
    """A name that tells the items of one evaluation apart."""
    match item:
        case Passage() | Context():
            return item.name
        case Problem():
            return f"{item.task}-{item.sample}"


def longest(item: Item) -> int:
    """Most tokens of a prompt and what follows it."""
    match item:
        case Passage():
            return len(item.prompt) + len(item.continuation)
        case Context():
            replies = [len(q.asked) + max(len(q.value), REPLY_TOKENS) for q in item.questions]
            return len(item.prompt) + max(replies)
        case Problem():
            return _PROBLEM_TOKENS


def divergence(
    method: Method, passage: Passage, kept_share: float, full: Tensor, compressed: Tensor
) -> Divergence:
    """Compare two runs over one continuation.

    Args:
        full, compressed: [T, V] float32 log-probabilities before each token.
    """
    return Divergence(
        method=method.name,
        target=method.target,
        kept_share=kept_share,
        text=passage.name,
        kind=passage.kind,
        prompt_tokens=len(passage.prompt),
        **_compared(passage.continuation, full, compressed),
        agree=(full.argmax(-1) == compressed.argmax(-1)).tolist(),
    )


def answer(
    method: Method,
    context: Context,
    number: int,
    kept_share: float,
    full: Tensor,
    compressed: Tensor,
) -> Retrieval:
    """Judge the value of a forced reply.

    Args:
        number: of the question.
        full, compressed: [T, V] float32 log-probabilities before each token of the value.
    """
    question = context.questions[number]
    return Retrieval(
        method=method.name,
        target=method.target,
        kept_share=kept_share,
        protocol=context.protocol,
        context=context.name,
        kind=context.kind,
        task=question.task,
        prompt_tokens=context.length,
        question=number,
        correct=compressed.argmax(-1).tolist() == question.value,
        **_compared(question.value, full, compressed),
    )


def _compared(tokens: list[int], full: Tensor, compressed: Tensor) -> dict[str, list[float]]:
    """KL and both NLL, by the names of the rows that hold them."""
    token = torch.tensor(tokens)[:, None]
    return {
        "kl": _rounded((full.exp() * (full - compressed)).sum(-1).clamp(min=0)),
        "nll": _rounded(-compressed.gather(1, token)[:, 0]),
        "full_nll": _rounded(-full.gather(1, token)[:, 0]),
    }


def _rounded(values: Tensor) -> list[float]:
    """Six digits: what follows is noise, and files stay small."""
    return [float(f"{value:.6g}") for value in values.tolist()]
