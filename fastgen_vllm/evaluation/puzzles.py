"""Facts to hide in a real text, and what to ask about them, drawn by dice.

The tasks are those that long-context suites use (passkey: arXiv 2305.16300; several keys,
variable tracking and counting: RULER, arXiv 2404.06654), and one that asks in other words.
"""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from fastgen_vllm.evaluation.sheets import Ask

_NOUNS = (
    *("apple", "river", "candle", "mountain", "violin", "harbor", "lantern", "meadow", "falcon"),
    *("copper", "pillow", "garden", "mirror", "ladder", "saddle", "basket", "anchor", "hammer"),
)
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_NUM_KEYS = 6
_NUM_HOPS = 3
_COUNTS = (6, 3, 1)

#: Sentences to hide, in this order, and what may be asked about them.
Puzzle = tuple[list[str], list[Ask]]


def passkey(dice: random.Random) -> Puzzle:
    """One number, hidden once."""
    key = str(dice.randrange(10_000, 100_000))
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."
    return [fact], [Ask("passkey", "What is the pass key?", "The pass key is", key)]


def codes(dice: random.Random) -> Puzzle:
    """Several numbers with names: one is asked for in the fact's words, one in others."""
    nouns = dice.sample(_NOUNS, _NUM_KEYS)
    known = {noun: str(dice.randrange(1_000, 10_000)) for noun in nouns}
    facts = [f"The code for the {noun} is {code}." for noun, code in known.items()]
    one, other = dice.sample(nouns, 2)
    question, lead = f"What is the code for the {one}?", f"The code for the {one} is"
    keys = Ask("keys", question, lead, known[one])
    para = Ask("para", f"Which number belongs to the {other}?", "It is", known[other])
    return facts, [keys, para]


def variables(dice: random.Random) -> Puzzle:
    """A value handed on from variable to variable."""
    value = str(dice.randrange(10_000, 100_000))
    names = dice.sample(_LETTERS, _NUM_HOPS)
    facts = [f"VAR {names[0]} = {value}."]
    facts += [f"VAR {new} = VAR {old}." for old, new in pairwise(names)]
    question, lead = f"What is the value of VAR {names[-1]}?", f"The value of VAR {names[-1]} is"
    return facts, [Ask("variables", question, lead, value)]


def counting(dice: random.Random) -> Puzzle:
    """Words, each named several times, of which the most frequent is asked for."""
    nouns = dice.sample(_NOUNS, len(_COUNTS))
    pairs = zip(nouns, _COUNTS, strict=True)
    facts = [f"The word is {noun}." for noun, count in pairs for _ in range(count)]
    dice.shuffle(facts)
    question, lead = "Which word was named most often?", "The word named most often is"
    return facts, [Ask("counting", question, lead, nouns[0])]


#: Which puzzle each task is about.
PUZZLES: dict[str, Callable[[random.Random], Puzzle]] = {
    "passkey": passkey,
    "keys": codes,
    "para": codes,
    "variables": variables,
    "counting": counting,
}


def together(tasks: Sequence[str], dice: random.Random) -> Puzzle:
    """The puzzles of several tasks as one: facts mixed, each puzzle's in their order."""
    puzzles = [make(dice) for make in dict.fromkeys(PUZZLES[task] for task in tasks)]
    owners = [number for number, (facts, _) in enumerate(puzzles) for _ in facts]
    dice.shuffle(owners)
    left = [iter(facts) for facts, _ in puzzles]
    asks = {ask.task: ask for _, of_puzzle in puzzles for ask in of_puzzle}
    return [next(left[owner]) for owner in owners], [asks[task] for task in tasks]
