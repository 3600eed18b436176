"""Passages, questions and problems through the engine."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.evaluation.engine import EvaluationEngine, Job, Outcome
from fastgen_vllm.evaluation.measure import (
    UNCOMPRESSED,
    Item,
    Method,
    answer,
    divergence,
    item_name,
)
from fastgen_vllm.evaluation.results import Heads, Memory, Results, Task
from fastgen_vllm.evaluation.retrieval import Question
from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.evaluation.tasks import Problem, is_correct
from fastgen_vllm.evaluation.texts import Passage

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

    Args:
        methods: of this engine; ``full`` is run for every passage anyway, to compare with.
    """
    engine = EvaluationEngine(
        model,
        config,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        pool_bytes=int(settings.pool_gib * 2**30),
        max_running=_MAX_RUNNING,
    )
    try:
        for item in items:
            wanted = list(methods)
            if isinstance(item, Passage) and UNCOMPRESSED not in wanted:
                wanted.insert(0, UNCOMPRESSED)
            jobs = [_job(item, method, tokenizer, config.min_prompt) for method in wanted]
            outcomes = dict(zip(wanted, engine.run(jobs), strict=True))
            yield item, _rows(item, methods, outcomes)
    finally:
        engine.close()


def _job(item: Item, method: Method, tokenizer: Any, min_prompt: int) -> Job:
    """A job of one item; problems are served as they would be, short ones uncompressed."""
    name = f"{item_name(item)}/{method.name}/{method.target}"
    match item:
        case Passage():
            return Job(name, item.prompt, method.arguments, forced=item.continuation)
        case Question():
            return Job(name, item.prompt, method.arguments, forced=item.reply)
        case Problem():
            prompt = prompt_of(item, tokenizer)
            is_short = len(prompt) < min_prompt
            arguments = UNCOMPRESSED.arguments if is_short else method.arguments
            return Job(name, prompt, arguments, max_tokens=item.max_tokens)


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


def _rows(item: Item, methods: Sequence[Method], outcomes: dict[Method, Outcome]) -> Results:
    rows = Results()
    for method in methods:
        outcome = outcomes[method]
        kept = outcome.kept_share
        named = {"method": method.name, "target": method.target, "kept_share": kept}
        match item:
            case Passage():
                full = outcomes[UNCOMPRESSED].log_probabilities
                assert full is not None and outcome.log_probabilities is not None
                if method != UNCOMPRESSED:
                    rows.divergence.append(
                        divergence(method, item, kept, full, outcome.log_probabilities)
                    )
                _add_memory(rows, named, item, outcome)
            case Question():
                assert outcome.log_probabilities is not None
                rows.retrieval.append(answer(method, item, kept, outcome.log_probabilities))
            case Problem():
                rows.tasks.append(
                    Task(
                        **named,
                        task=item.task,
                        sample=item.sample,
                        prompt_tokens=len(outcome.job.prompt),
                        correct=is_correct(item, outcome.text),
                    )
                )
    return rows


def _add_memory(rows: Results, named: dict[str, Any], passage: Passage, outcome: Outcome) -> None:
    where = {"text": passage.name, "prompt_tokens": len(passage.prompt)}
    if outcome.memory:
        rows.memory.append(Memory(**named, **where, series=outcome.memory))
    if outcome.kept is not None and outcome.policies is not None:
        kept = outcome.kept.float().mean(-1).tolist()
        rows.heads.append(Heads(**named, **where, kept=kept, policy=outcome.policies))
