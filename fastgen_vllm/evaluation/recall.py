"""Passages that go on with something seen long ago, found in real texts."""

import random
from collections.abc import Sequence
from typing import Any

from fastgen_vllm.evaluation.texts import Corpus, Passage, cut

KIND = "recall"
_CANDIDATES = 12  # of each kind of text, for every passage
_WORDS = 6  # tokens that count as the same words
_RECENT = 256  # tokens before the continuation that are not long ago


def recalling_passages(
    corpora: Sequence[Corpus],
    tokenizer: Any,
    lengths: Sequence[int],
    continuation: int,
    count: int,
    seed: int,
) -> list[Passage]:
    """Cut ``count`` passages of each prompt length, of many the ones that recall most.

    Args:
        tokenizer: a Hugging Face tokenizer.
        lengths: prompt lengths, in tokens.
        continuation: tokens after the prompt.

    Raises:
        ValueError: no document of a kind is long enough.
    """
    passages = []
    for length in lengths:
        dice = random.Random(f"{seed} {KIND} {length}")
        for number in range(count):
            cuts = [
                cut(corpus.documents, tokenizer, length + continuation, dice, corpus.kind)
                for corpus in corpora
                for _ in range(_CANDIDATES)
            ]
            best = max(cuts, key=lambda tokens: recalled(tokens[:length], tokens[length:]))
            name = f"{KIND}-{length}-{number}"
            passages.append(Passage(name, KIND, best[:length], best[length:]))
    return passages


def recalled(prompt: list[int], continuation: list[int]) -> float:
    """Share of the continuation's word sequences that the prompt has, but not its end."""
    early = set(_sequences(prompt[:-_RECENT])) - set(_sequences(prompt[-_RECENT:]))
    found = [sequence in early for sequence in _sequences(continuation)]
    return sum(found) / max(1, len(found))


def _sequences(tokens: list[int]) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + _WORDS]) for i in range(len(tokens) - _WORDS + 1)]
