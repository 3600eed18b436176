"""Questions after a prompt, through the engine: what is forced, what is scored, against what."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastgen_vllm.evaluation.contexts import COPY, SEEN, SUMMARY, TURNS, UNSEEN, Context, Maker
from fastgen_vllm.evaluation.dense import DenseModel
from fastgen_vllm.evaluation.dialogue import Dialogue
from fastgen_vllm.evaluation.measure import UNCOMPRESSED, Method
from fastgen_vllm.evaluation.ours import measure_on_engine
from fastgen_vllm.evaluation.results import Results, Retrieval
from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.evaluation.texts import Corpus
from fastgen_vllm.models.tokenizer import load_tokenizer
from fastgen_vllm.request import GENERATED, KEEP
from tests.evaluation.tiny import MANUAL
from tests.evaluation.watched import CONFIG

ALL = Method("all", 1.0, ((KEEP, 1.0), (GENERATED, "keep")))
HALF = Method("half", 0.5, ((KEEP, 0.5), (GENERATED, "keep")))
NLL_CLOSE, KL_CLOSE = 2e-4, 3e-5


class Measured(NamedTuple):
    """A prompt whose questions are all answered, and its rows."""

    context: Context
    rows: Results

    def of(self, method: Method) -> list[Retrieval]:
        return [row for row in self.rows.retrieval if row.method == method.name]


@pytest.fixture(scope="module")
def measured(tiny_chat: Path) -> list[Measured]:
    tokenizer = load_tokenizer(str(tiny_chat))
    corpora = (Corpus("manual", (MANUAL[:60_000],)),)
    maker = Maker(corpora, tokenizer, Dialogue.of(tokenizer), 520, 0)
    contexts = maker.contexts(SEEN, (SUMMARY,), 1)
    for protocol in (UNSEEN, TURNS):
        contexts += maker.contexts(protocol, ("keys", COPY, SUMMARY), 1)
    found = measure_on_engine(
        str(tiny_chat),
        tokenizer,
        CONFIG,
        [UNCOMPRESSED, ALL, HALF],
        contexts,
        Settings(pool_gib=0.05),
    )
    measured = []
    for context, (item, rows) in zip(contexts, found, strict=True):
        assert item == context
        replies = {reply.question: reply.tokens for reply in rows.replies}
        measured.append(Measured(context.answered(replies), rows))
    return measured


@pytest.fixture(scope="module")
def dense(tiny_chat: Path) -> DenseModel:
    return DenseModel(tiny_chat)


@torch.no_grad()
def before_value(dense: DenseModel, context: Context, number: int) -> Tensor:
    """[T, V] log-probabilities of the value, by one ordinary pass over everything before it."""
    question = context.questions[number]
    tokens = context.prompt + question.asked + question.value
    rows = dense.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    found: Tensor = rows[-len(question.value) - 1 : -1]
    return found


def test_scored_tokens_are_those_of_the_value(measured: list[Measured], dense: DenseModel) -> None:
    for one in measured:
        for number, row in enumerate(one.of(UNCOMPRESSED)):
            value = one.context.questions[number].value
            said = before_value(dense, one.context, number)
            expected = -said.gather(1, torch.tensor(value)[:, None])[:, 0]
            assert row.question == number
            assert row.full_nll == pytest.approx(expected.tolist(), abs=NLL_CLOSE)
            assert row.correct == (said.argmax(-1).tolist() == value)


def test_the_own_reply_is_what_the_model_says(measured: list[Measured], dense: DenseModel) -> None:
    for one in measured:
        (reply,) = one.rows.replies
        assert one.context.questions[reply.question].task == SUMMARY
        said = before_value(dense, one.context, reply.question)
        assert said.argmax(-1).tolist() == reply.tokens
        assert 1 < len(reply.tokens) <= 32


def test_keeping_everything_is_no_divergence(measured: list[Measured]) -> None:
    for one in measured:
        rows = one.of(ALL)
        assert len(rows) == len(one.context.questions)
        for row in rows:
            assert row.kept_share == 1
            assert max(row.kl) <= KL_CLOSE
            assert row.nll == pytest.approx(row.full_nll, abs=NLL_CLOSE)


def test_every_token_after_the_prompt_reads_the_compressed_cache(measured: list[Measured]) -> None:
    """Later questions from their first token on; a reply in the prompt's turn from its second."""
    for one in measured:
        for row in one.of(HALF):
            assert row.kept_share == pytest.approx(0.5, abs=1e-3)
            assert min(row.kl[1:]) > KL_CLOSE
            assert (row.kl[0] > KL_CLOSE) == (row.protocol != SEEN)
