"""Questions about facts hidden in real text, generated from a seed.

The tasks are those that long-context suites use (passkey: arXiv 2305.16300; several keys,
variable tracking and counting: RULER, arXiv 2404.06654), over prose instead of noise. The
question stands at the end of the prompt, as in a chat: a policy may see it. The reply is forced
up to the value, so that the value itself is decoded with the compressed cache.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from fastgen_vllm.evaluation.texts import cut, tokenize

_NOUNS = (
    *("apple", "river", "candle", "mountain", "violin", "harbor", "lantern", "meadow", "falcon"),
    *("copper", "pillow", "garden", "mirror", "ladder", "saddle", "basket", "anchor", "hammer"),
)
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_MARK = "<message>"
_NUM_KEYS = 6
_NUM_HOPS = 3
_COUNTS = (6, 3, 1)


class Dialogue(NamedTuple):
    """What the model's chat template puts around a user's message."""

    before: list[int]  # token ids
    after: list[int]  # token ids, up to where the reply begins

    @classmethod
    def of(cls, tokenizer: Any) -> "Dialogue":
        """Take the template apart; a model without one gets a plain question and answer."""
        if tokenizer.chat_template is None:
            return cls([], tokenize(tokenizer, "\nAnswer: "))
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], add_generation_prompt=True, tokenize=False
        )
        before, after = text.split(_MARK)
        return cls(tokenize(tokenizer, before), tokenize(tokenizer, after))


class Puzzle(NamedTuple):
    """Sentences to hide, what is asked about them, and the true reply."""

    facts: list[str]
    question: str
    lead: str  # the reply up to the value
    value: str


@dataclass(frozen=True)
class Question:
    """A prompt of real text with facts in it, and the reply to force."""

    task: str
    sample: int
    prompt: list[int]  # token ids, of the nominal length exactly
    reply: list[int]  # token ids
    num_value: int  # how many of the reply's last tokens are the value


def passkey(dice: random.Random) -> Puzzle:
    """One number, hidden once."""
    key = dice.randrange(10_000, 100_000)
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."
    return Puzzle([fact], "What is the pass key?", "The pass key is", str(key))


def keys(dice: random.Random) -> Puzzle:
    """Several numbers with names, of which one is asked for."""
    nouns = dice.sample(_NOUNS, _NUM_KEYS)
    codes = [dice.randrange(1_000, 10_000) for _ in nouns]
    facts = [f"The code for the {n} is {c}." for n, c in zip(nouns, codes, strict=True)]
    noun, code = dice.choice(list(zip(nouns, codes, strict=True)))
    lead = f"The code for the {noun} is"
    return Puzzle(facts, f"What is the code for the {noun}?", lead, str(code))


def variables(dice: random.Random) -> Puzzle:
    """A value handed on from variable to variable."""
    value = dice.randrange(10_000, 100_000)
    names = dice.sample(_LETTERS, _NUM_HOPS)
    facts = [f"VAR {names[0]} = {value}."]
    facts += [f"VAR {new} = VAR {old}." for old, new in pairwise(names)]
    lead = f"The value of VAR {names[-1]} is"
    return Puzzle(facts, f"What is the value of VAR {names[-1]}?", lead, str(value))


def counting(dice: random.Random) -> Puzzle:
    """Words, each named several times, of which the most frequent is asked for."""
    nouns = dice.sample(_NOUNS, len(_COUNTS))
    pairs = zip(nouns, _COUNTS, strict=True)
    facts = [f"The word is {noun}." for noun, count in pairs for _ in range(count)]
    dice.shuffle(facts)
    question = "Which word was named most often?"
    return Puzzle(facts, question, "The word named most often is", nouns[0])


TASKS: dict[str, Callable[[random.Random], Puzzle]] = {
    "passkey": passkey,
    "keys": keys,
    "variables": variables,
    "counting": counting,
}


def questions(
    task: str,
    documents: Sequence[str],
    tokenizer: Any,
    dialogue: Dialogue,
    length: int,
    count: int,
    seed: int,
) -> list[Question]:
    """Return ``count`` questions of one task over real text.

    Args:
        task: one of :data:`TASKS`.
        documents: texts to hide facts in.
        tokenizer: a Hugging Face tokenizer.
        dialogue: that of the model.
        length: tokens of every prompt.

    Raises:
        ValueError: no such task, or the text or length is too short.
    """
    if task not in TASKS:
        raise ValueError(f"retrieval task {task!r}: use one of {', '.join(TASKS)}.")
    return [
        _question(task, documents, tokenizer, dialogue, length, sample, seed)
        for sample in range(count)
    ]


def _question(
    task: str,
    documents: Sequence[str],
    tokenizer: Any,
    dialogue: Dialogue,
    length: int,
    sample: int,
    seed: int,
) -> Question:
    dice = random.Random(f"{seed} {task} {length} {sample}")
    puzzle = TASKS[task](dice)
    facts = [tokenize(tokenizer, f"\n{fact}\n") for fact in puzzle.facts]
    asked = tokenize(tokenizer, f"\n\n{puzzle.question}") + dialogue.after
    lead, value = tokenize(tokenizer, puzzle.lead), tokenize(tokenizer, f" {puzzle.value}")
    room = length - len(dialogue.before) - len(asked) - sum(map(len, facts))
    if room < length // 2:
        raise ValueError(f"--retrieval-lengths {length}: too short for retrieval task {task!r}.")
    text = cut(documents, tokenizer, room, dice, "retrieval")
    places = sorted(dice.randrange(room + 1) for _ in facts)
    prompt = list(dialogue.before)
    for begin, end, fact in zip([0, *places], [*places, room], [*facts, asked], strict=True):
        prompt += text[begin:end] + fact
    # Some tokenizers put the blank before a number into a token of its own: not worth a point.
    blanks = next(i for i, token in enumerate(value) if tokenizer.decode([token]).strip())
    return Question(task, sample, prompt, lead + value, len(value) - blanks)
