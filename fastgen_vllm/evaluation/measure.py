"""From log-probabilities to rows: the same for the engine and for other libraries."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgen_vllm.evaluation.results import Divergence, Retrieval
from fastgen_vllm.evaluation.retrieval import Question
from fastgen_vllm.evaluation.statistics import FULL
from fastgen_vllm.evaluation.tasks import Problem
from fastgen_vllm.evaluation.texts import Passage
from fastgen_vllm.request import ENABLED

Item = Passage | Question | Problem


class Method(NamedTuple):
    """One way to treat a prompt's cache."""

    name: str
    target: float | None = None  # nominal kept share
    arguments: tuple[tuple[str, Any], ...] = ()  # of requests to our engine


UNCOMPRESSED = Method(FULL, arguments=((ENABLED, "off"),))


def item_name(item: Item) -> str:
    """A name that tells the items of one evaluation apart."""
    match item:
        case Passage():
            return item.name
        case Question():
            return f"{item.task}-{len(item.prompt)}-{item.sample}"
        case Problem():
            return f"{item.task}-{item.sample}"


def divergence(
    method: Method, passage: Passage, kept_share: float, full: Tensor, compressed: Tensor
) -> Divergence:
    """Compare two runs over one continuation.

    Args:
        full, compressed: [T, V] float32 log-probabilities before each token.
    """
    token = torch.tensor(passage.continuation)[:, None]
    kl = (full.exp() * (full - compressed)).sum(-1)
    return Divergence(
        method=method.name,
        target=method.target,
        kept_share=kept_share,
        text=passage.name,
        kind=passage.kind,
        prompt_tokens=len(passage.prompt),
        kl=_rounded(kl),
        nll=_rounded(-compressed.gather(1, token)[:, 0]),
        full_nll=_rounded(-full.gather(1, token)[:, 0]),
        agree=(full.argmax(-1) == compressed.argmax(-1)).tolist(),
    )


def answer(
    method: Method, question: Question, kept_share: float, log_probabilities: Tensor
) -> Retrieval:
    """Judge the value at the end of a forced reply.

    Args:
        log_probabilities: [T, V] float32, before each token of the reply.
    """
    value = torch.tensor(question.reply[-question.num_value :])
    said = log_probabilities[-question.num_value :]
    return Retrieval(
        method=method.name,
        target=method.target,
        kept_share=kept_share,
        task=question.task,
        prompt_tokens=len(question.prompt),
        sample=question.sample,
        correct=bool((said.argmax(-1) == value).all()),
        answer_nll=float(-said.gather(1, value[:, None]).mean()),
    )


def _rounded(values: Tensor) -> list[float]:
    """Six digits: what follows is noise, and files stay small."""
    return [float(f"{value:.6g}") for value in values.tolist()]
