"""What a long prompt is made of before it is laid out: facts, questions, and text around them."""

import random
from collections.abc import Callable
from typing import NamedTuple

#: Returns token ids, as many as there is room for or a few less.
Filler = Callable[[random.Random, int], list[int]]


class Ask(NamedTuple):
    """A question and the true reply."""

    task: str
    question: str
    lead: str  # the reply up to the value
    value: str


class Sheet(NamedTuple):
    """Everything that is drawn before the length of the text is known."""

    facts: list[str]  # to hide, in this order
    asks: list[Ask]
    filler: Filler
    intro: str = ""  # stands before the text
