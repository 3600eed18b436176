"""Prompts with questions: what each protocol puts into the prompt, and what it keeps for later."""

import re
from typing import Any

import pytest

from fastgen_vllm.evaluation.contexts import (
    COPY,
    SEEN,
    SUMMARY,
    TASKS,
    TURNS,
    UNSEEN,
    Context,
    Maker,
    Question,
)
from fastgen_vllm.evaluation.dialogue import Dialogue
from fastgen_vllm.evaluation.puzzles import PUZZLES
from fastgen_vllm.evaluation.settings import RETRIEVAL
from fastgen_vllm.evaluation.texts import Corpus
from tests.evaluation.tiny import CHAT_TEMPLATE, MANUAL, tiny_tokenizer

CORPORA = (
    Corpus("manual", (MANUAL[:60_000], MANUAL[100_000:130_000])),
    Corpus("more", (MANUAL[200_000:300_000],)),
)
DOCUMENTS = [document for corpus in CORPORA for document in corpus.documents]
LENGTH, COUNT = 1024, 4
PROTOCOLS = (SEEN, UNSEEN, TURNS)

TOKENIZERS = {
    "base": tiny_tokenizer(),
    "chat": tiny_tokenizer(CHAT_TEMPLATE),
    "lone digits": tiny_tokenizer(lone_digits=True),
}


def make(
    protocol: str,
    tokenizer: Any,
    tasks: tuple[str, ...] = TASKS,
    length: int = LENGTH,
    seed: int = 0,
    count: int = COUNT,
) -> list[Context]:
    maker = Maker(CORPORA, tokenizer, Dialogue.of(tokenizer), length, seed)
    return maker.contexts(protocol, tasks, count)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]


def after_of(tokenizer: Any) -> str:
    return "</s>\n<|assistant|>\n" if tokenizer.chat_template else "\nAnswer: "


def true_answer(task: str, prompt: str, question: str) -> str:
    """The answer, read from the prompt as a person would."""
    match task:
        case "passkey":
            (key,) = set(re.findall(r"pass key is (\d+)|(\d+) is the pass key", prompt)[0]) - {""}
            return key
        case "keys" | "para":
            codes = dict(re.findall(r"The code for the (\w+) is (\d+)\.", prompt))
            (noun,) = re.findall(r"(?:code for|belongs to) the (\w+)\?", question)
            return codes[noun]
        case "variables":
            values = dict(re.findall(r"VAR (\w) = (?:VAR )?(\w+)\.", prompt))
            (name,) = re.findall(r"What is the value of VAR (\w)\?", question)
            while name in values:
                name = values[name]
            return name
        case "counting":
            nouns = re.findall(r"The word is (\w+)\.", prompt)
            return max(set(nouns), key=nouns.count)
    raise AssertionError(task)


def test_settings_know_the_tasks() -> None:
    assert set(TASKS) <= set(RETRIEVAL)


@pytest.mark.parametrize("length", [800, 1023, 2048])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts_have_the_asked_length(protocol: str, length: int, tokenizer: Any) -> None:
    for context in make(protocol, tokenizer, length=length, count=2):
        assert len(context.prompt) == context.length == length
        assert context.protocol == protocol


def test_one_prompt_serves_all_questions_that_come_after_it() -> None:
    for protocol in (UNSEEN, TURNS):
        contexts = make(protocol, TOKENIZERS["chat"])
        assert len(contexts) == COUNT
        for context in contexts:
            assert [q.task for q in context.questions] == [*PUZZLES, SUMMARY, COPY, COPY]
    contexts = make(SEEN, TOKENIZERS["chat"])
    assert len(contexts) == COUNT * len(TASKS)
    assert [context.questions[0].task for context in contexts[::COUNT]] == list(TASKS)
    assert {len(context.questions) for context in contexts} == {1}


def test_names_are_unique_and_kinds_alternate() -> None:
    contexts = [c for protocol in PROTOCOLS for c in make(protocol, TOKENIZERS["chat"])]
    assert len({context.name for context in contexts}) == len(contexts)
    assert [context.kind for context in contexts[:COUNT]] == ["manual", "more"] * 2


def asked_text(question: Question, tokenizer: Any) -> str:
    text: str = tokenizer.decode(question.asked)
    return text


@pytest.mark.parametrize("task", PUZZLES)
def test_a_seen_question_ends_the_prompt(task: str, tokenizer: Any) -> None:
    for context in make(SEEN, tokenizer, (task,)):
        (question,) = context.questions
        text, gap, end = tokenizer.decode(context.prompt).rpartition("\n\n")
        asked, mark, rest = end.partition("?")
        assert gap and mark and rest == after_of(tokenizer)
        assert text.startswith("<|user|>\n") == bool(tokenizer.chat_template)
        answer = true_answer(task, text, f"{asked}?")
        assert tokenizer.decode(question.value).strip() == answer
        reply = tokenizer.decode(question.asked + question.value)
        assert reply.endswith(f" {answer}") and "\n" not in reply


@pytest.mark.parametrize("protocol", [UNSEEN, TURNS])
def test_a_later_question_is_not_in_the_prompt(protocol: str, tokenizer: Any) -> None:
    """Neither its words nor the template's: a policy cannot know what will be asked."""
    for context in make(protocol, tokenizer):
        prompt = tokenizer.decode(context.prompt)
        for question in context.questions:
            asked, _, lead = asked_text(question, tokenizer).partition(after_of(tokenizer))
            assert asked[-25:] not in prompt
            if question.task in PUZZLES:
                answer = true_answer(question.task, prompt, asked)
                assert tokenizer.decode(question.value).strip() == answer
                assert lead.strip()


def test_an_unseen_question_is_in_the_users_turn() -> None:
    tokenizer = TOKENIZERS["chat"]
    for context in make(UNSEEN, tokenizer):
        prompt = tokenizer.decode(context.prompt)
        assert prompt.startswith("<|user|>\n")
        assert "<|assistant|>" not in prompt and "</s>" not in prompt
        for question in context.questions:
            asked = asked_text(question, tokenizer)
            assert asked.startswith("\n\n") and asked.count("<|") == 1


def test_a_later_turn_follows_an_answered_one() -> None:
    tokenizer = TOKENIZERS["chat"]
    for context in make(TURNS, tokenizer):
        text, passage = context.prompt[:-36], context.prompt[-36:]
        assert holds(text, passage), "the first turn is not answered from the text"
        asked = tokenizer.decode(text).rpartition("\n\nCopy the passage")[2]
        assert asked.startswith(' of the text that begins with "')
        assert asked.endswith(after_of(tokenizer))
        for later in context.questions:
            assert asked_text(later, tokenizer).startswith("</s>\n<|user|>\n")
            if later.task == COPY:
                copied = later.asked[-12:] + later.value
                assert holds(text, copied) and copied != passage


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_passages_to_copy_are_whole_and_quoted(protocol: str, tokenizer: Any) -> None:
    tasks = (COPY,) if protocol == SEEN else TASKS
    for context in make(protocol, tokenizer, tasks):
        for question in (q for q in context.questions if q.task == COPY):
            passage = question.asked[-12:] + question.value
            assert len(question.value) == 24
            assert holds(context.prompt, passage), "a fact stands in it"
            quoting = context.prompt if protocol == SEEN else question.asked
            assert holds(quoting[-80:], passage[:8]), "it is not quoted"


def holds(tokens: list[int], part: list[int]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_the_value_is_judged(protocol: str, tokenizer: Any) -> None:
    """Its tokens, without one that is nothing but the blank before it."""
    for context in make(protocol, tokenizer, tuple(PUZZLES)):
        for question in context.questions:
            assert question.forced.scored == question.value
            assert tokenizer.decode([question.value[0]]).strip(), "a blank is judged"
            assert not tokenizer.decode(question.asked).endswith(
                tokenizer.decode(question.value).strip()[0]
            )


def test_blanks_are_of_both_kinds() -> None:
    """Else the test above would see one way to put a blank before a number only."""

    def is_alone(name: str) -> bool:
        tokenizer = TOKENIZERS[name]
        return tokenizer.decode(tokenizer(" 12345").input_ids[:1]) == " "

    assert is_alone("lone digits") and not is_alone("base")


def test_replies_fill_what_has_no_true_answer() -> None:
    (context, *_) = make(UNSEEN, TOKENIZERS["chat"])
    (number,) = context.open_questions
    assert context.questions[number].task == SUMMARY
    answered = context.answered({number: [7, 8, 9]})
    assert answered.open_questions == []
    assert answered.questions[number].forced.scored == [7, 8, 9]
    for other, question in enumerate(answered.questions):
        assert (question == context.questions[other]) == (other != number)


def test_questions_at_once_and_in_the_next_turn_have_the_same_answers() -> None:
    tokenizer = TOKENIZERS["chat"]
    for one, other in zip(make(UNSEEN, tokenizer), make(TURNS, tokenizer), strict=True):
        for question, later in zip(one.questions, other.questions, strict=True):
            assert question.task == later.task
            if question.task in PUZZLES:
                assert question.value == later.value


def test_facts_stand_at_different_depths() -> None:
    """In the first half of some prompts and in the second of others, chains in their order."""
    tokenizer = TOKENIZERS["base"]
    depths = []
    for context in make(UNSEEN, tokenizer):
        prompt = tokenizer.decode(context.prompt)
        depths += [match.start() / len(prompt) for match in re.finditer("The code for", prompt)]
        assert prompt.count("The pass key is") == 1 and prompt.count("The word is") == 10
        chain = re.findall(r"VAR (\w) = (?:VAR (\w)|\d+)\.", prompt)
        assert [old for _, old in chain] == ["", *(new for new, _ in chain[:-1])]
    assert min(depths) < 0.4 and max(depths) > 0.6


def test_the_text_is_real(tokenizer: Any) -> None:
    """What surrounds the facts comes from the documents."""
    for context in make(UNSEEN, tokenizer, ("passkey",)):
        prompt = tokenizer.decode(context.prompt).removeprefix("<|user|>\n")
        before, _, rest = prompt.partition("\nThe pass key is ")
        behind = rest.partition("is the pass key.\n")[2]
        assert len(before) + len(behind) > LENGTH
        for piece in (before, behind):
            piece = piece.strip("\N{REPLACEMENT CHARACTER}")
            assert any(piece in document for document in DOCUMENTS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_seed_decides_everything(protocol: str, tokenizer: Any) -> None:
    first = make(protocol, tokenizer)
    assert make(protocol, tokenizer) == first
    assert len({tuple(context.prompt) for context in first}) == len(first)
    for context, other in zip(first, make(protocol, tokenizer, seed=1), strict=True):
        assert context.prompt != other.prompt


def test_fewer_samples_are_the_first_ones() -> None:
    tokenizer = TOKENIZERS["base"]
    assert make(UNSEEN, tokenizer, count=2) == make(UNSEEN, tokenizer)[:2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_length_without_room_for_text_is_refused(protocol: str, tokenizer: Any) -> None:
    """The refusal names the option."""
    with pytest.raises(ValueError, match=r"^--retrieval-lengths 120: too short for keys"):
        make(protocol, tokenizer, ("keys",), length=120)


def test_texts_that_are_too_short_are_refused() -> None:
    tokenizer = TOKENIZERS["base"]
    maker = Maker((Corpus("note", ("A note.",)),), tokenizer, Dialogue.of(tokenizer), LENGTH, 0)
    with pytest.raises(ValueError, match="--texts"):
        maker.contexts(UNSEEN, ("passkey",), 1)


def test_no_task_makes_no_prompt() -> None:
    for protocol in PROTOCOLS:
        assert make(protocol, TOKENIZERS["base"], ()) == []


def test_turns_need_a_template_that_knows_them() -> None:
    tokenizer = tiny_tokenizer("<|user|>{{ messages[0].content }}<|assistant|>")
    assert make(UNSEEN, tokenizer)
    with pytest.raises(ValueError, match=r"^--protocols turns: the model's chat template cannot"):
        make(TURNS, tokenizer)
