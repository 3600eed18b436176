"""Passages, questions and problems through the engine."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.evaluation.contexts import REPLY_TOKENS, Context
from fastgen_vllm.evaluation.engine import EvaluationEngine, Job, Outcome
from fastgen_vllm.evaluation.measure import (
    UNCOMPRESSED,
    Item,
    Method,
    answer,
    divergence,
    item_name,
    longest,
)
from fastgen_vllm.evaluation.results import Heads, Memory, Reply, Results, Task
from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.evaluation.tasks import Problem, is_correct
from fastgen_vllm.evaluation.texts import Forced, Passage

_MAX_RUNNING = 8


def measure_on_engine(
    model: str,
    tokenizer: Any,
    config: FastGenConfig,
    methods: Sequence[Method],
    items: Sequence[Item],
    settings: Settings,
) -> Iterator[tuple[Item, Results]]:
    """Yield the rows of every item, as soon as all methods have passed it.

    Questions that the uncompressed model has not replied to yet are put to it first.

    Args:
        methods: of this engine; ``full`` is run for every text anyway, to compare with.
    """
    engine = EvaluationEngine(
        model,
        config,
        dtype=settings.dtype,
        max_model_len=max(longest(item) for item in items),
        pool_bytes=int(settings.pool_gib * 2**30),
        max_running=_MAX_RUNNING,
        found=settings.found,
        found_by=settings.found_by,
    )
    try:
        for item in items:
            match item:
                case Passage():
                    yield item, _passage_rows(engine, item, methods)
                case Context():
                    yield item, _context_rows(engine, item, methods)
                case Problem():
                    rows = _problem_rows(engine, item, methods, tokenizer, config.min_prompt)
                    yield item, rows
    finally:
        engine.close()


def _passage_rows(engine: EvaluationEngine, passage: Passage, methods: Sequence[Method]) -> Results:
    full, outcomes = _run_beside_full(engine, passage, [passage.forced], methods)
    rows = Results()
    for method, (outcome,) in outcomes.items():
        said, kept = _said(outcome), outcome.kept_share
        if method != UNCOMPRESSED:
            rows.divergence.append(divergence(method, passage, kept, full[0], said))
        named = {"method": method.name, "target": method.target, "kept_share": kept}
        _add_memory(rows, named, passage, outcome)
    return rows


def _context_rows(engine: EvaluationEngine, context: Context, methods: Sequence[Method]) -> Results:
    rows = Results(replies=_own_replies(engine, context))
    context = context.answered({reply.question: reply.tokens for reply in rows.replies})
    forced = [question.forced for question in context.questions]
    full, outcomes = _run_beside_full(engine, context, forced, methods)
    for method, by_question in outcomes.items():
        for number, outcome in enumerate(by_question):
            kept, said = outcome.kept_share, _said(outcome)
            rows.retrieval.append(answer(method, context, number, kept, full[number], said))
    return rows


def _own_replies(engine: EvaluationEngine, context: Context) -> list[Reply]:
    """What the uncompressed model says to the questions that have no true answer."""
    numbers = context.open_questions
    jobs = [
        Job(
            f"{context.name}/{number}/reply",
            context.prompt + context.questions[number].asked,
            UNCOMPRESSED.arguments,
            max_tokens=REPLY_TOKENS,
        )
        for number in numbers
    ]
    return [
        Reply(context=context.name, question=number, tokens=outcome.tokens)
        for number, outcome in zip(numbers, engine.run(jobs), strict=True)
    ]


def _run_beside_full(
    engine: EvaluationEngine,
    item: Passage | Context,
    forced: Sequence[Forced],
    methods: Sequence[Method],
) -> tuple[list[Tensor], dict[Method, list[Outcome]]]:
    """Force every text after the prompt, by the uncompressed model and by every method.

    Returns:
        [num_scored, V] log-probabilities of the uncompressed model, and the methods' outcomes,
        for each text.
    """
    jobs = {
        (method, number): Job(
            f"{item.name}/{number}/{method.name}/{method.target}",
            item.prompt,
            method.arguments,
            forced=text.tokens,
            num_scored=text.num_scored,
        )
        for method in dict.fromkeys((UNCOMPRESSED, *methods))
        for number, text in enumerate(forced)
    }
    outcomes = dict(zip(jobs, engine.run(list(jobs.values())), strict=True))

    def of(method: Method) -> list[Outcome]:
        return [outcomes[method, number] for number in range(len(forced))]

    return [_said(outcome) for outcome in of(UNCOMPRESSED)], {m: of(m) for m in methods}


def _said(outcome: Outcome) -> Tensor:
    assert outcome.log_probabilities is not None, "the job was forced"
    return outcome.log_probabilities


def _problem_rows(
    engine: EvaluationEngine,
    problem: Problem,
    methods: Sequence[Method],
    tokenizer: Any,
    min_prompt: int,
) -> Results:
    """Problems are served as they would be, short ones uncompressed."""
    prompt = prompt_of(problem, tokenizer)
    jobs = [
        Job(
            f"{item_name(problem)}/{method.name}/{method.target}",
            prompt,
            UNCOMPRESSED.arguments if len(prompt) < min_prompt else method.arguments,
            max_tokens=problem.max_tokens,
        )
        for method in methods
    ]
    return Results(
        tasks=[
            Task(
                method=method.name,
                target=method.target,
                kept_share=outcome.kept_share,
                task=problem.task,
                sample=problem.sample,
                prompt_tokens=len(prompt),
                correct=is_correct(problem, outcome.text),
            )
            for method, outcome in zip(methods, engine.run(jobs), strict=True)
        ]
    )


def prompt_of(problem: Problem, tokenizer: Any) -> list[int]:
    """Token ids of a problem, through the model's chat template if it has one."""
    if tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in problem.messages)
        ids: list[int] = tokenizer(text).input_ids
        return ids
    ids = tokenizer.apply_chat_template(
        list(problem.messages), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids


def _add_memory(rows: Results, named: dict[str, Any], passage: Passage, outcome: Outcome) -> None:
    where = {"text": passage.name, "prompt_tokens": len(passage.prompt)}
    if outcome.memory:
        rows.memory.append(Memory(**named, **where, series=outcome.memory))
    if outcome.kept is not None and outcome.policies is not None:
        kept = outcome.kept.float().mean(-1).tolist()
        rows.heads.append(Heads(**named, **where, kept=kept, policy=outcome.policies))
