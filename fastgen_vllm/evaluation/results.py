"""What an evaluation measured: the rows of its JSON file, which the report is drawn from."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Row(BaseModel):
    """One measurement of one method on one sample.

    Attributes:
        method: ``full`` (uncompressed), a preset or config name, or a peer's: ``kvpress NAME``,
            ``peer NAME``, ``bound NAME``.
        target: nominal kept share, if the method was run at one; a preset has none.
        kept_share: kept prompt tokens over prompt tokens, averaged over heads; in [0, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    target: float | None
    kept_share: float


class Divergence(_Row):
    """A forced continuation of real text after a compressed prompt, per position."""

    text: str  # name of the text
    kind: str  # prose, manual, code, ...
    prompt_tokens: int
    kl: list[float]  # [T] nats, KL(full || this) over the whole vocabulary
    nll: list[float]  # [T] nats, of the text's own next token
    full_nll: list[float]  # [T] nats, the same, uncompressed
    agree: list[bool]  # [T] same most likely token as uncompressed


class Retrieval(_Row):
    """One generated question about a long prompt, per token of the true answer."""

    protocol: str  # seen, unseen, turns
    context: str  # name of the prompt
    kind: str  # of its text: prose, manual, code, ...
    task: str  # passkey, keys, para, ...
    prompt_tokens: int  # nominal length
    question: int  # number among those about the prompt
    correct: bool  # every token of the answer would have been said
    kl: list[float]  # [T] nats, KL(full || this) over the whole vocabulary
    nll: list[float]  # [T] nats
    full_nll: list[float]  # [T] nats, the same, uncompressed


class Task(_Row):
    """One problem of a public benchmark, answered by free generation."""

    task: str  # gsm8k, humaneval
    sample: str  # the problem's id
    prompt_tokens: int
    correct: bool


class MemoryPoint(BaseModel):
    """Memory of one request at one moment, as shares of what stock vLLM would hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generated: int  # tokens generated so far
    slots: float  # kept tokens over tokens, averaged over heads
    pages: float  # pages in use over pages of an uncompressed request
    blocks: float  # blocks that the allocator counts over blocks of an uncompressed request


class Memory(_Row):
    """Memory of one request over its generation."""

    text: str
    prompt_tokens: int
    series: list[MemoryPoint]


class Heads(_Row):
    """What every head of one prompt kept, and by which policy."""

    text: str
    prompt_tokens: int
    kept: list[list[float]]  # [L][H] kept share
    policy: list[list[str]]  # [L][H] policy name


class Reply(BaseModel):
    """What the uncompressed model says itself, which all methods are then made to say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: str  # name of the prompt
    question: int  # number among those about the prompt
    tokens: list[int]


class Results(BaseModel):
    """Everything one evaluation measured, with its circumstances."""

    model_config = ConfigDict(extra="forbid")

    facts: dict[str, Any] = {}  # date, model, hardware, versions, seed, options
    divergence: list[Divergence] = []
    retrieval: list[Retrieval] = []
    tasks: list[Task] = []
    memory: list[Memory] = []
    heads: list[Heads] = []
    replies: list[Reply] = []
