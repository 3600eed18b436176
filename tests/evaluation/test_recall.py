"""Passages that go on with something seen long ago."""

import random

import pytest

from fastgen_vllm.evaluation.recall import recalled, recalling_passages
from fastgen_vllm.evaluation.texts import Corpus, cut_passages, tokenize
from tests.evaluation.tiny import CODE, MANUAL, tiny_tokenizer

CORPORA = (Corpus("manual", (MANUAL[:150_000],)), Corpus("code", (CODE,)))
TOKENIZER = tiny_tokenizer()


def test_only_what_is_long_ago_counts() -> None:
    random_tokens = random.Random(0).choices(range(10_000), k=900)
    early, late, other = (random_tokens[a : a + 40] for a in (100, 500, 600))
    prompt = random_tokens[:600]
    assert recalled(prompt, early) == 1
    assert recalled(prompt, late) == 0, "it is recent"
    assert recalled(prompt, other) == 0
    assert recalled(prompt[:300] + early + prompt[300:], early) == 1
    assert recalled(prompt + early, early) == 0, "it was said again"
    # Of 20 + 40 tokens 15 sequences of six lie in the early ones.
    assert recalled(prompt, early[:20] + other) == pytest.approx(15 / 55)


def test_passages_recall_more_than_others_do() -> None:
    usual = cut_passages(CORPORA, TOKENIZER, [600], 64, 6, 0)
    found = recalling_passages(CORPORA, TOKENIZER, [600], 64, 3, 0)
    shares = [recalled(passage.prompt, passage.continuation) for passage in found]
    others = [recalled(passage.prompt, passage.continuation) for passage in usual]
    assert sum(shares) / len(shares) > 3 * sum(others) / len(others)
    assert min(shares) > sorted(others)[len(others) // 2]


def test_passages_are_of_the_texts() -> None:
    found = recalling_passages(CORPORA, TOKENIZER, [300, 400], 32, 2, 0)
    assert [passage.name for passage in found] == [
        "recall-300-0",
        "recall-300-1",
        "recall-400-0",
        "recall-400-1",
    ]
    assert {passage.kind for passage in found} == {"recall"}
    texts = [text for corpus in CORPORA for text in corpus.documents]
    for passage in found:
        assert len(passage.prompt) == int(passage.name.split("-")[1])
        assert len(passage.continuation) == 32
        text = TOKENIZER.decode(passage.prompt + passage.continuation)
        text = text.strip("\N{REPLACEMENT CHARACTER}")
        assert any(text in document for document in texts)
        assert tokenize(TOKENIZER, text)


def test_a_seed_decides_the_passages() -> None:
    first = recalling_passages(CORPORA, TOKENIZER, [300], 32, 2, 0)
    assert recalling_passages(CORPORA, TOKENIZER, [300], 32, 2, 0) == first
    assert recalling_passages(CORPORA, TOKENIZER, [300], 32, 1, 0) == first[:1]
    assert recalling_passages(CORPORA, TOKENIZER, [300], 32, 2, 1) != first
