"""Long prompts with questions about them, generated from a seed.

Three protocols tell when a policy learns of a question. ``seen``: it stands at the end of the
prompt. ``unseen``: the prompt is the text alone, and each question comes later on a copy of its
own. ``turns``: the prompt ends with a question and its answer, and each other question comes as
the next turn. A reply is forced up to its value, so that the value itself is decoded with the
compressed cache.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from fastgen_vllm.evaluation import ruler
from fastgen_vllm.evaluation.dialogue import Dialogue
from fastgen_vllm.evaluation.puzzles import PUZZLES, together
from fastgen_vllm.evaluation.sheets import Ask, Sheet
from fastgen_vllm.evaluation.texts import Corpus, Forced, cut, tokenize

SEEN, UNSEEN, TURNS = "seen", "unseen", "turns"
COPY, SUMMARY = "copy", "summary"
TASKS = (*PUZZLES, COPY, SUMMARY)
REPLY_TOKENS = 32  # of the uncompressed model's own summary, at most

_NUM_COPIES = 2  # passages to copy
_QUOTED, _LEAD, _COPIED = 8, 12, 24  # tokens of such a passage
_PASSAGE = _LEAD + _COPIED


class Question(NamedTuple):
    """Tokens that follow a prompt: what is still to be asked, and the reply."""

    task: str
    asked: list[int]  # token ids up to the value
    value: list[int]  # token ids that are scored; none until the uncompressed model has replied

    @property
    def forced(self) -> Forced:
        """All of it."""
        return Forced(self.asked + self.value, len(self.value))


@dataclass(frozen=True)
class Context:
    """A prompt and the questions that follow it, each on a copy of its own."""

    name: str
    protocol: str  # seen, unseen, turns
    kind: str  # of text
    length: int  # nominal, in tokens
    prompt: list[int]  # token ids
    questions: tuple[Question, ...]

    @property
    def open_questions(self) -> list[int]:
        """Numbers of the questions whose value is the uncompressed model's own reply."""
        return [number for number, question in enumerate(self.questions) if not question.value]

    def answered(self, replies: dict[int, list[int]]) -> "Context":
        """The same with replies, by the number of the question."""
        questions = list(self.questions)
        for number, reply in replies.items():
            questions[number] = questions[number]._replace(value=reply)
        return replace(self, questions=tuple(questions))


class _Place(NamedTuple):
    """Where a context belongs."""

    protocol: str
    topic: str
    kind: str  # of text
    sample: int

    def name(self, length: int) -> str:
        return f"{self.protocol}-{self.topic}-{length}-{self.sample}"


class _Bare(NamedTuple):
    """A question's token ids without what a template puts around them."""

    task: str
    question: list[int]
    lead: list[int]
    value: list[int]


@dataclass(frozen=True)
class Maker:
    """Makes contexts of one length for one model.

    Attributes:
        corpora: texts to hide facts in, a kind after the other.
        tokenizer: a Hugging Face tokenizer.
        dialogue: that of the model.
        length: tokens of every prompt.
        seed: of everything that is drawn.
    """

    corpora: Sequence[Corpus]
    tokenizer: Any
    dialogue: Dialogue
    length: int
    seed: int

    def contexts(self, protocol: str, tasks: Sequence[str], count: int) -> list[Context]:
        """Return ``count`` contexts for all tasks, or for each if the prompt holds its question.

        RULER's tasks have contexts of their own, and no turns.

        Args:
            protocol: seen, unseen or turns.
            tasks: of :data:`TASKS`, or RULER's.

        Raises:
            ValueError: the texts or the length are too short, or the model knows no turns.
        """
        if protocol == TURNS and self.dialogue.between is None:
            raise ValueError(
                "--protocols turns: the model's chat template cannot write two turns; leave it out."
            )
        own = [task for task in tasks if task in TASKS]
        groups = [[task] for task in own] if protocol == SEEN else [own] if own else []
        contexts = [self._about_facts(protocol, group, n) for group in groups for n in range(count)]
        if protocol != TURNS:
            rulers = [task for task in tasks if task in ruler.TASKS]
            contexts += [self._of_ruler(protocol, task, n) for task in rulers for n in range(count)]
        return contexts

    def _about_facts(self, protocol: str, tasks: list[str], sample: int) -> Context:
        topic = tasks[0] if protocol == SEEN else "facts"
        # Questions at once and in the next turn are about the same text.
        dice = random.Random(f"{self.seed} {topic} {self.length} {sample}")
        corpus = self.corpora[sample % len(self.corpora)]

        def real_text(dice: random.Random, room: int) -> list[int]:
            return cut(corpus.documents, self.tokenizer, room, dice, "retrieval")

        facts, asks = together([task for task in tasks if task in PUZZLES], dice)
        if SUMMARY in tasks:
            asks.append(Ask(SUMMARY, "Summarize the text above in a few sentences.", "", ""))
        copies = (1 if protocol == SEEN else _NUM_COPIES) if COPY in tasks else 0
        where = _Place(protocol, topic, corpus.kind, sample)
        return self._laid_out(where, Sheet(facts, asks, real_text), copies, dice)

    def _of_ruler(self, protocol: str, task: str, sample: int) -> Context:
        dice = random.Random(f"{self.seed} {task} {self.length} {sample}")
        sheet = self._ruler.sheet(task, dice)
        return self._laid_out(_Place(protocol, task, self.corpora[0].kind, sample), sheet, 0, dice)

    @cached_property
    def _ruler(self) -> ruler.Ruler:
        return ruler.Ruler(self.corpora[0].documents, self.tokenizer)

    def _laid_out(self, where: _Place, sheet: Sheet, copies: int, dice: random.Random) -> Context:
        """Hide the sheet's facts in its text.

        Args:
            copies: how many questions ask to copy a passage, beside those of the sheet.
        """
        if where.protocol == TURNS:
            copies += 1  # the turn before copies a passage of its own
        facts = [self._tokens(f"\n{fact}\n") for fact in sheet.facts]
        bare = [self._bare(ask) for ask in sheet.asks]
        start = [*self.dialogue.before, *self._tokens(sheet.intro)]
        # Whatever is to be copied, the question is as long.
        asked = [*bare, *[self._copy([0] * _PASSAGE)] * copies]
        end = self._end(where.protocol, asked)
        room = self.length - sum(map(len, (start, *facts, end)))
        least = max(self.length // 2, copies * _PASSAGE)
        text = sheet.filler(dice, room) if room >= least else []
        if len(text) < least:
            tasks = ", ".join(dict.fromkeys(one.task for one in asked))
            raise ValueError(
                f"--retrieval-lengths {self.length}: too short for {tasks} in one prompt "
                f"({where.protocol}); give longer ones, or fewer tasks with --retrieval."
            )
        begins = [_PASSAGE * cell for cell in dice.sample(range(len(text) // _PASSAGE), copies)]
        bare += [self._copy(text[begin : begin + _PASSAGE]) for begin in begins]
        prompt = start + _hidden(facts, text, begins, dice) + self._end(where.protocol, bare)
        questions = tuple(self._questions(where.protocol, bare))
        return Context(
            where.name(self.length), where.protocol, where.kind, self.length, prompt, questions
        )

    def _end(self, protocol: str, bare: list[_Bare]) -> list[int]:
        """What the prompt holds after the text."""
        if protocol == UNSEEN:
            return []
        last = bare[-1]
        end = self._tokens("\n\n") + last.question + self.dialogue.after
        return end if protocol == SEEN else end + last.lead + last.value

    def _questions(self, protocol: str, bare: list[_Bare]) -> Iterator[Question]:
        """What follows the prompt."""
        if protocol == SEEN:
            yield Question(bare[-1].task, bare[-1].lead, bare[-1].value)
            return
        first = protocol == TURNS
        opening = self.dialogue.between if first else self._tokens("\n\n")
        assert opening is not None, "turns were refused without it"
        for one in bare[:-1] if first else bare:
            yield Question(
                one.task, opening + one.question + self.dialogue.after + one.lead, one.value
            )

    def _bare(self, ask: Ask) -> _Bare:
        value = self._tokens(f" {ask.value}") if ask.value else []
        # Some tokenizers put the blank before a number into a token of its own: not worth a point.
        blanks = 0
        while value and not self.tokenizer.decode([value[blanks]]).strip():
            blanks += 1
        lead = self._tokens(ask.lead) + value[:blanks]
        return _Bare(ask.task, self._tokens(ask.question), lead, value[blanks:])

    def _copy(self, passage: list[int]) -> _Bare:
        """Ask to copy a passage; the reply is judged from a few words on."""
        question = self._tokens('Copy the passage of the text that begins with "')
        question += passage[:_QUOTED] + self._tokens('".')
        return _Bare(COPY, question, passage[:_LEAD], passage[_LEAD:])

    def _tokens(self, text: str) -> list[int]:
        return tokenize(self.tokenizer, text) if text else []


def _hidden(
    facts: list[list[int]], text: list[int], begins: list[int], dice: random.Random
) -> list[int]:
    """Put facts into a text at random places, but not into the passages that begin there."""
    inside = {place for begin in begins for place in range(begin + 1, begin + _PASSAGE)}
    free = [place for place in range(len(text) + 1) if place not in inside]
    places = sorted(dice.choice(free) for _ in facts)
    mixed = []
    for begin, end, fact in zip([0, *places], [*places, len(text)], [*facts, []], strict=True):
        mixed += text[begin:end] + fact
    return mixed
