"""Questions about hidden facts: what a prompt holds, and what the reply is judged by."""

import random
import re
from typing import Any

import pytest

from fastgen_vllm.evaluation.retrieval import TASKS, Dialogue, Question, questions
from fastgen_vllm.evaluation.settings import RETRIEVAL
from tests.evaluation.tiny import CHAT_TEMPLATE, MANUAL, tiny_tokenizer

DOCUMENTS = (MANUAL[:60_000], MANUAL[100_000:130_000])
LENGTH, COUNT = 512, 6

TOKENIZERS = {
    "base": tiny_tokenizer(),
    "chat": tiny_tokenizer(CHAT_TEMPLATE),
    "lone digits": tiny_tokenizer(lone_digits=True),
}


def ask(task: str, tokenizer: Any, length: int = LENGTH, seed: int = 0) -> list[Question]:
    dialogue = Dialogue.of(tokenizer)
    return questions(task, DOCUMENTS, tokenizer, dialogue, length, COUNT, seed)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]


def test_settings_know_the_tasks() -> None:
    assert tuple(TASKS) == RETRIEVAL


@pytest.mark.parametrize("length", [400, 511, 1024])
@pytest.mark.parametrize("task", TASKS)
def test_prompts_have_the_asked_length(task: str, length: int, tokenizer: Any) -> None:
    asked = ask(task, tokenizer, length)
    assert [len(question.prompt) for question in asked] == [length] * COUNT
    assert [question.sample for question in asked] == list(range(COUNT))
    assert {question.task for question in asked} == {task}


@pytest.mark.parametrize("task", TASKS)
def test_prompts_hold_every_fact_and_end_with_the_question(task: str, tokenizer: Any) -> None:
    for question in ask(task, tokenizer):
        puzzle = TASKS[task](random.Random(f"0 {task} {LENGTH} {question.sample}"))
        prompt = tokenizer.decode(question.prompt)
        places = []
        for fact in puzzle.facts:
            assert prompt.count(f"\n{fact}\n") == puzzle.facts.count(fact)
            places.append(prompt.index(f"\n{fact}\n"))
        if len(set(puzzle.facts)) == len(puzzle.facts):
            assert places == sorted(places), "a chain of variables is out of order"
        text, _, end = prompt.rpartition(f"\n\n{puzzle.question}")
        after = "</s>\n<|assistant|>\n" if tokenizer.chat_template else "\nAnswer: "
        assert end == after
        assert text.startswith("<|user|>\n") == bool(tokenizer.chat_template)
        assert puzzle.question not in text


@pytest.mark.parametrize("task", TASKS)
def test_the_reply_ends_with_the_true_value(task: str, tokenizer: Any) -> None:
    for question in ask(task, tokenizer):
        puzzle = TASKS[task](random.Random(f"0 {task} {LENGTH} {question.sample}"))
        assert tokenizer.decode(question.reply) == f"{puzzle.lead} {puzzle.value}"
        assert true_answer(task, tokenizer.decode(question.prompt)) == puzzle.value


def true_answer(task: str, prompt: str) -> str:
    """The answer, read from the prompt as a person would."""
    match task:
        case "passkey":
            (key,) = set(re.findall(r"pass key is (\d+)|(\d+) is the pass key", prompt)[0]) - {""}
            return key
        case "keys":
            codes = dict(re.findall(r"The code for the (\w+) is (\d+)\.", prompt))
            (noun,) = re.findall(r"What is the code for the (\w+)\?", prompt)
            return codes[noun]
        case "variables":
            values = dict(re.findall(r"VAR (\w) = (?:VAR )?(\w+)\.", prompt))
            (name,) = re.findall(r"What is the value of VAR (\w)\?", prompt)
            while name in values:
                name = values[name]
            return name
        case _:
            nouns = re.findall(r"The word is (\w+)\.", prompt)
            return max(set(nouns), key=nouns.count)


@pytest.mark.parametrize("task", TASKS)
def test_only_the_value_is_judged(task: str, tokenizer: Any) -> None:
    """Its tokens, without one that is nothing but the blank before it."""
    for question in ask(task, tokenizer):
        value = question.reply[-question.num_value :]
        lead = question.reply[: -question.num_value]
        text = tokenizer.decode(question.reply).rsplit(" ", 1)[1]
        assert tokenizer.decode(value).strip() == text
        assert tokenizer.decode([value[0]]).strip(), "a blank is judged"
        assert not tokenizer.decode(lead).endswith(text[0])


def test_blanks_are_of_both_kinds() -> None:
    """Else the tests above would see one way to put a blank before a number only."""

    def is_alone(name: str) -> bool:
        tokenizer = TOKENIZERS[name]
        return tokenizer.decode(tokenizer(" 12345").input_ids[:1]) == " "

    assert is_alone("lone digits") and not is_alone("base")


@pytest.mark.parametrize("task", TASKS)
def test_facts_stand_at_different_depths(task: str) -> None:
    """In the first half of some prompts and in the second of others."""
    tokenizer = TOKENIZERS["base"]
    depths = []
    for question in ask(task, tokenizer):
        puzzle = TASKS[task](random.Random(f"0 {task} {LENGTH} {question.sample}"))
        prompt = tokenizer.decode(question.prompt)
        depths += [prompt.index(fact) / len(prompt) for fact in puzzle.facts]
    assert min(depths) < 0.4 and max(depths) > 0.6


def test_the_text_is_real(tokenizer: Any) -> None:
    """What surrounds the facts comes from the documents."""
    for question in ask("passkey", tokenizer):
        prompt = tokenizer.decode(question.prompt).removeprefix("<|user|>\n")
        before, _, rest = prompt.partition("\nThe pass key is ")
        behind = rest.partition("is the pass key.\n")[2].rpartition("\n\nWhat is")[0]
        assert len(before) + len(behind) > LENGTH
        for piece in (before, behind):
            piece = piece.strip("\N{REPLACEMENT CHARACTER}")
            assert any(piece in document for document in DOCUMENTS)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_decides_the_questions(task: str, tokenizer: Any) -> None:
    first = ask(task, tokenizer)
    assert ask(task, tokenizer) == first
    assert len({tuple(question.prompt) for question in first}) == COUNT
    for question, other in zip(first, ask(task, tokenizer, seed=1), strict=True):
        assert question.prompt != other.prompt


def test_fewer_samples_are_the_first_ones() -> None:
    tokenizer = TOKENIZERS["base"]
    few = questions("keys", DOCUMENTS, tokenizer, Dialogue.of(tokenizer), LENGTH, 2, 0)
    assert few == ask("keys", tokenizer)[:2]


def test_a_length_without_room_for_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="120: too short for retrieval task 'keys'"):
        ask("keys", tokenizer, 120)


def test_the_refusal_names_the_option() -> None:
    with pytest.raises(ValueError, match=r"^--retrieval-lengths 120: too short"):
        ask("keys", TOKENIZERS["base"], 120)


def test_texts_that_are_too_short_are_refused() -> None:
    tokenizer = TOKENIZERS["base"]
    with pytest.raises(ValueError, match="--texts"):
        questions("passkey", ("A note.",), tokenizer, Dialogue.of(tokenizer), LENGTH, 1, 0)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="'haystack': use one of passkey, keys"):
        ask("haystack", TOKENIZERS["base"])


def test_a_dialogue_is_what_the_template_writes() -> None:
    tokenizer = TOKENIZERS["chat"]
    dialogue = Dialogue.of(tokenizer)
    message = "What now?"
    ids = tokenizer(message, add_special_tokens=False).input_ids
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
    )
    assert [*dialogue.before, *ids, *dialogue.after] == whole


def test_a_model_without_template_gets_a_plain_question() -> None:
    tokenizer = TOKENIZERS["base"]
    dialogue = Dialogue.of(tokenizer)
    assert dialogue.before == []
    assert tokenizer.decode(dialogue.after) == "\nAnswer: "
