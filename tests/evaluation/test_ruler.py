"""RULER's kinds of tasks: that the prompt holds the answer, and nothing that spoils it."""

import random
import re
from collections import Counter
from typing import Any

import pytest

from fastgen_vllm.evaluation.contexts import SEEN, TURNS, UNSEEN, Context, Maker
from fastgen_vllm.evaluation.dialogue import Dialogue
from fastgen_vllm.evaluation.ruler import TASKS, Ruler
from fastgen_vllm.evaluation.settings import RETRIEVAL, Settings
from fastgen_vllm.evaluation.texts import Corpus
from tests.evaluation.tiny import CHAT_TEMPLATE, MANUAL, tiny_tokenizer

CORPORA = (Corpus("manual", (MANUAL[:200_000],)),)
TOKENIZER = tiny_tokenizer(CHAT_TEMPLATE)
LENGTH, COUNT = 4096, 2  # the tiny tokenizer has three times as many tokens as others
NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.")


def make(protocol: str, task: str, length: int = LENGTH, seed: int = 0) -> list[Context]:
    maker = Maker(CORPORA, TOKENIZER, Dialogue.of(TOKENIZER), length, seed)
    return maker.contexts(protocol, [task], COUNT)


def value_of(context: Context) -> str:
    (question,) = context.questions
    text: str = TOKENIZER.decode(question.value)
    return text.strip()


def asked_of(context: Context) -> str:
    """The question and the reply's lead, wherever they stand."""
    (question,) = context.questions
    text: str = TOKENIZER.decode(context.prompt[-400:] + question.asked)
    return text


def true_answer(task: str, prompt: str, asked: str) -> str:
    """Read from the prompt as a person would."""
    if task.startswith("niah"):
        question = asked.rpartition("What ")[2]
        (names,) = re.findall(r"special magic \w+ for (.+) in the text above\?", question)
        found = NEEDLE.findall(prompt)
        return ", ".join(v for name in names.split(", ") for key, v in found if key == name)
    if task == "vt":
        (value,) = re.findall(r"assigned the value (\d+) in the text", asked)
        names = re.findall(rf"VAR (\w+) = {value}\b", prompt)
        for new, old in re.findall(r"VAR (\w+) = VAR (\w+)", prompt):
            names += [new] if old in names else []
        return ", ".join(names)
    raise AssertionError(task)


def test_there_are_eleven_of_thirteen() -> None:
    assert len(TASKS) == 11
    assert set(TASKS) <= set(RETRIEVAL)
    assert Settings(retrieval=("keys", "ruler", "vt")).checked().retrieval_tasks == ("keys", *TASKS)


@pytest.mark.parametrize("protocol", [SEEN, UNSEEN])
@pytest.mark.parametrize("task", [t for t in TASKS if t not in ("cwe", "fwe")])
def test_the_answer_is_in_the_prompt(task: str, protocol: str) -> None:
    for context in make(protocol, task):
        prompt = TOKENIZER.decode(context.prompt)
        answer = true_answer(task, prompt, asked_of(context))
        assert value_of(context) == answer != ""
        assert (protocol == SEEN) == ("in the text above" in prompt)


@pytest.mark.parametrize(
    ("task", "needles", "values"),
    [
        ("niah_single_1", 1, 1),
        ("niah_single_2", 1, 1),
        ("niah_single_3", 1, 1),
        ("niah_multikey_1", 4, 1),
        ("niah_multikey_2", None, 1),
        ("niah_multikey_3", None, 1),
        ("niah_multivalue", 4, 4),
        ("niah_multiquery", 4, 4),
    ],
)
def test_needles_are_as_many_as_they_should_be(task: str, needles: int | None, values: int) -> None:
    for context in make(UNSEEN, task):
        prompt = TOKENIZER.decode(context.prompt)
        found = NEEDLE.findall(prompt)
        assert len(value_of(context).split(", ")) == values
        if needles is None:
            assert len(found) > 20, "the haystack is of needles"
            assert len({key for key, _ in found}) == len(found)
        else:
            assert len(found) == needles
        assert ("The grass is green." in prompt) == (task == "niah_single_1")


def test_a_chain_has_five_variables() -> None:
    for context in make(UNSEEN, "vt"):
        assert len(value_of(context).split(", ")) == 5


def test_common_words_are_the_most_common() -> None:
    for context in make(UNSEEN, "cwe"):
        text = TOKENIZER.decode(context.prompt)
        counts = Counter(re.findall(r"\b\d+\. (\w+)", text))
        common = value_of(context).split(", ")
        assert sorted(common) == sorted(word for word, count in counts.items() if count == 10)
        assert len(common) == 10 and set(counts.values()) == {10, 3}


def test_frequent_words_are_the_most_frequent() -> None:
    for context in make(UNSEEN, "fwe"):
        text = TOKENIZER.decode(context.prompt).partition("following text.\n\n")[2]
        counts = Counter(text.split()).most_common(5)
        assert counts[0][0] == "..."
        assert value_of(context).split(", ") == [word for word, _ in counts[1:4]]
        numbers = [count for _, count in counts]
        assert numbers == sorted(set(numbers), reverse=True), "two are as frequent"


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_nearly_as_long_as_asked(task: str) -> None:
    """Text of whole sentences cannot fill every length."""
    for length in (LENGTH, LENGTH + 333):
        for context in make(UNSEEN, task, length):
            assert length - 110 <= len(context.prompt) <= length == context.length


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_decides_everything(task: str) -> None:
    first = make(UNSEEN, task)
    assert make(UNSEEN, task) == first
    assert first[0].prompt != first[1].prompt
    assert make(UNSEEN, task, seed=1)[0].prompt != first[0].prompt


def test_other_turns_are_not_of_ruler() -> None:
    assert make(TURNS, "vt") == []


@pytest.mark.parametrize("task", ["cwe", "niah_multiquery"])
def test_a_short_length_is_refused(task: str) -> None:
    problem = f"^--retrieval-lengths 300: too short for {task} in one prompt"
    with pytest.raises(ValueError, match=problem):
        make(UNSEEN, task, 300)


def test_texts_of_few_words_are_refused() -> None:
    few: Any = Ruler(("A note of few words. " * 900,), TOKENIZER)
    with pytest.raises(ValueError, match=r"^--texts: RULER's tasks need 100 different words"):
        few.sheet("cwe", random.Random(0))
