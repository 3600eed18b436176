"""RULER's kinds of tasks (arXiv 2404.06654), generated after their description.

Eleven of thirteen: eight needles in a haystack, variable tracking, common and frequent words;
the two that ask about public question sets are left out. What RULER judges by strings in a free
answer is forced here in the order of the text, and right if every token would have been said.
"""

import math
import random
import re
import string
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

from fastgen_vllm.evaluation.sheets import Ask, Sheet
from fastgen_vllm.evaluation.texts import cut, tokenize

_NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)
_NUM_COMMON, _COMMON, _UNCOMMON = 10, 10, 3  # common words, and how often each word comes
_NUM_HOPS = 4
_MOST_CODED = 200  # different coded words
_FEWEST_WORDS, _MOST_WORDS = 100, 4000  # of a vocabulary


class _Needles(NamedTuple):
    """One of RULER's eight haystacks."""

    haystack: str  # noise, essay, needles
    num_keys: int = 1
    num_values: int = 1  # of each key
    num_asked: int = 1  # keys
    keys: str = "words"
    values: str = "numbers"


_NEEDLES = {
    "niah_single_1": _Needles("noise"),
    "niah_single_2": _Needles("essay"),
    "niah_single_3": _Needles("essay", values="uuids"),
    "niah_multikey_1": _Needles("essay", num_keys=4),
    "niah_multikey_2": _Needles("needles"),
    "niah_multikey_3": _Needles("needles", keys="uuids", values="uuids"),
    "niah_multivalue": _Needles("essay", num_values=4),
    "niah_multiquery": _Needles("essay", num_keys=4, num_asked=4),
}
TASKS = (*_NEEDLES, "vt", "cwe", "fwe")


@dataclass(frozen=True)
class Ruler:
    """Draws sheets of RULER's tasks.

    Attributes:
        documents: real texts, for essays and words.
        tokenizer: a Hugging Face tokenizer.
    """

    documents: Sequence[str]
    tokenizer: Any

    def sheet(self, task: str, dice: random.Random) -> Sheet:
        """Draw one sheet.

        Args:
            task: one of :data:`TASKS`.

        Raises:
            ValueError: the texts have too few words.
        """
        makers = {"vt": self._variables, "cwe": self._common_words, "fwe": self._frequent_words}
        if task in makers:
            return makers[task](dice)
        return self._needles(task, _NEEDLES[task], dice)

    def _needles(self, task: str, spec: _Needles, dice: random.Random) -> Sheet:
        kind = spec.values
        drawn = {
            self._name(spec.keys, dice): [
                self._name(spec.values, dice) for _ in range(spec.num_values)
            ]
            for _ in range(spec.num_keys)
        }
        facts = [
            f"One of the special magic {kind} for {key} is: {value}."
            for key, values in drawn.items()
            for value in values
        ]
        dice.shuffle(facts)
        asked = dice.sample(list(drawn), spec.num_asked)
        names = ", ".join(asked)
        answer = [value for key in asked for value in drawn[key]]
        # In the order of the text, as far as it is free.
        if spec.num_asked == 1:
            answer.sort(key=lambda value: [value in fact for fact in facts].index(True))
        is_one = len(answer) == 1
        verb, noun = ("is", kind.removesuffix("s")) if is_one else ("are", kind)
        ask = Ask(
            task,
            f"What {verb} the special magic {noun} for {names} in the text above?",
            f"The special magic {noun} for {names} {verb}",
            ", ".join(answer),
        )
        intro = f"Special magic {kind} are hidden in the following text. Memorize them.\n\n"
        if spec.haystack != "needles":
            filler = self._noise if spec.haystack == "noise" else self._essay
            return Sheet(facts, [ask], filler, intro)
        return Sheet([], [ask], partial(self._more_needles, spec, facts), intro)

    def _variables(self, dice: random.Random) -> Sheet:
        value = str(dice.randrange(10_000, 100_000))
        letters = string.ascii_uppercase
        names = ["".join(dice.choices(letters, k=5)) for _ in range(_NUM_HOPS + 1)]
        facts = [f"VAR {names[0]} = {value}"]
        facts += [f"VAR {new} = VAR {old}" for old, new in pairwise(names)]
        ask = Ask(
            "vt",
            f"Find all variables that are assigned the value {value} in the text above.",
            f"{len(names)} variables are assigned the value {value}:",
            ", ".join(names),
        )
        intro = "Track the chain of variable assignments hidden in the following text.\n\n"
        return Sheet(facts, [ask], self._noise, intro)

    def _common_words(self, dice: random.Random) -> Sheet:
        words = dice.sample(self._words, len(self._words))
        common, rest = words[:_NUM_COMMON], words[_NUM_COMMON:]
        order = dice.random()

        def listed(count: int) -> str:
            words = common * _COMMON + rest[:count] * _UNCOMMON
            random.Random(order).shuffle(words)
            return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))

        ask = Ask(
            "cwe",
            f"What are the {_NUM_COMMON} most common words in the list above?",
            "The most common words are:",
            ", ".join(common),
        )
        intro = "Some words of the following list come more often than others.\n\n"
        return Sheet([], [ask], lambda _, room: self._most(listed, room, len(rest)), intro)

    def _frequent_words(self, dice: random.Random) -> Sheet:
        letters = string.ascii_lowercase
        coded = ["...", *("".join(dice.choices(letters, k=6)) for _ in range(_MOST_CODED))]
        order = dice.random()

        def text(count: int) -> str:
            words = []
            for rank, word in enumerate(coded, 1):
                words += [word] * round(count * rank**-2 / (math.pi**2 / 6))
            random.Random(order).shuffle(words)
            return " ".join(words)

        ask = Ask(
            "fwe",
            "Ignore the dots. Which three words are most frequent in the coded text above?",
            "The three most frequent words are:",
            ", ".join(coded[1:4]),
        )
        intro = "Track how often each coded word comes in the following text.\n\n"
        return Sheet([], [ask], lambda _, room: self._most(text, room), intro)

    def _essay(self, dice: random.Random, room: int) -> list[int]:
        return cut(self.documents, self.tokenizer, room, dice, "retrieval")

    def _noise(self, _: random.Random, room: int) -> list[int]:
        return self._most(lambda count: _NOISE * count, room)

    def _more_needles(
        self, spec: _Needles, facts: list[str], dice: random.Random, room: int
    ) -> list[int]:
        """Needles of other keys, and those that are asked for somewhere among them."""
        others = [
            f"One of the special magic {spec.values} for {self._name(spec.keys, dice)} is: "
            f"{self._name(spec.values, dice)}."
            for _ in range(room // len(facts[0].split()))
        ]
        depth = dice.random()

        def text(count: int) -> str:
            place = int(depth * count)
            return "\n".join([*others[:place], *facts, *others[place:count]])

        return self._most(text, room, len(others))

    def _most(self, make: Callable[[int], str], room: int, limit: int = sys.maxsize) -> list[int]:
        """Token ids of the text of the largest number, up to a limit, that there is room for.

        Empty if there is none.

        Args:
            make: returns longer texts for larger numbers.
        """
        enough, too_many = 0, 1
        while too_many <= limit and len(tokenize(self.tokenizer, make(too_many))) <= room:
            enough, too_many = too_many, 2 * too_many
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            if middle <= limit and len(tokenize(self.tokenizer, make(middle))) <= room:
                enough = middle
            else:
                too_many = middle
        tokens = tokenize(self.tokenizer, make(enough))
        return tokens if len(tokens) <= room else []

    def _name(self, kind: str, dice: random.Random) -> str:
        match kind:
            case "words":
                return "-".join(dice.sample(self._words, 2))
            case "numbers":
                return str(dice.randrange(1_000_000, 10_000_000))
            case _:
                return str(uuid.UUID(int=dice.getrandbits(128), version=4))

    @cached_property
    def _words(self) -> list[str]:
        """Common words of the documents, in alphabetical order."""
        counts = Counter(re.findall(r"\b[a-z]{4,9}\b", " ".join(self.documents)))
        words = sorted(word for word, _ in counts.most_common(_MOST_WORDS))
        if len(words) < _FEWEST_WORDS:
            raise ValueError(
                f"--texts: RULER's tasks need {_FEWEST_WORDS} different words, the first kind has "
                f"{len(words)}."
            )
        return words
