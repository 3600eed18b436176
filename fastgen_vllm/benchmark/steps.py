"""``benchmark.py steps``: time of a decode step against context length and running requests."""

import argparse
from collections.abc import Sequence

from fastgen_vllm.benchmark import comparison
from fastgen_vllm.benchmark.engines import Engine
from fastgen_vllm.benchmark.facts import circumstances
from fastgen_vllm.benchmark.model import Models
from fastgen_vllm.benchmark.options import (
    BLOCK_SIZE,
    MAX_BATCHED_TOKENS,
    above_zero,
    add_common,
    check_lengths,
    check_pool,
    default_threads,
    model_len,
    positive,
    positives,
)
from fastgen_vllm.benchmark.process import in_process_environment, run_worker
from fastgen_vllm.benchmark.results import Sample
from fastgen_vllm.benchmark.series import Point, Settings
from fastgen_vllm.benchmark.table import Column

COLUMNS = (
    Column("kept_tokens", "kept tokens", compared=False),
    Column("prompt_tokens", "of prompt", compared=False),
    Column("blocks", "blocks per request", compared=False),
    Column("decode_step_ms", "decode step ms"),
    Column("host_ms", "of it host ms", compared=False),
    Column("prefill_seconds", "prefill s"),
    Column("profiling_seconds", "profiling s", compared=False),
    Column("compaction_seconds", "compaction s", compared=False),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``steps``."""
    add_common(parser)
    parser.set_defaults(when="always")  # in a pool with room
    add = parser.add_argument
    add("--contexts", type=positives, default=(1024, 2048, 4096, 8192), metavar="LIST",
        help="tokens of a request, each at the first of --running "
        "(default: 1024,2048,4096,8192)")  # fmt: skip
    add("--running", type=positives, default=(4, 8, 16), metavar="LIST",
        help="requests in a step, each at the first of --contexts (default: 4,8,16)")  # fmt: skip
    add("--steps", type=positive, default=32, metavar="N",
        help="decode steps to take the median of (default: %(default)s)")  # fmt: skip
    add("--pool-gib", type=above_zero, metavar="X", help="KV pool (default: ample)")


def run(options: argparse.Namespace) -> int:
    """Measure, and print a Markdown table.

    Raises:
        ValueError: an option cannot be used; nothing has been measured.
    """
    engines, models = comparison.sides_of(options)
    points = plan(options.contexts, options.running)
    longest = max(options.contexts)
    check_lengths(models, longest, "--contexts")
    for point in points:
        if point.prompt_len(options.steps) < 1:
            least = point.context - point.prompt_len(options.steps) + 1
            raise ValueError(
                f"--contexts {point.context}: at least {least} with {point.running} running and "
                f"--steps {options.steps}."
            )
    pool_gib = options.pool_gib or ample_pool(models, points)
    for point in points:
        check_pool(models, pool_gib, point.context, point.running)
    threads = default_threads(options.threads)

    def measure(engine: Engine) -> list[Sample]:
        settings = Settings(
            engine=engine,
            model=models[engine.name].path,
            dtype=options.dtype,
            enforce_eager=options.enforce_eager,
            max_model_len=model_len(models, longest),
            max_running=max(options.running),
            pool_bytes=int(pool_gib * 2**30),
            seed=options.seed,
            points=points,
            steps=options.steps,
        )
        environment = {**in_process_environment(threads), **engine.environment}
        return run_worker("series", settings, environment)

    facts = circumstances(
        options,
        engines,
        models,
        contexts=list(options.contexts),
        running=list(options.running),
        steps=options.steps,
        pool_gib=round(pool_gib, 4),
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=max(MAX_BATCHED_TOKENS, *options.running),
        prefix_caching=False,
    )
    return comparison.run(comparison.Comparison(engines, facts, COLUMNS, measure), options)


def plan(contexts: Sequence[int], running: Sequence[int]) -> list[Point]:
    """Two sweeps: every context at the first number of requests, and the other way around."""
    first = [Point(context=context, running=running[0]) for context in contexts]
    return first + [Point(context=contexts[0], running=number) for number in running[1:]]


def ample_pool(models: Models, points: Sequence[Point]) -> float:
    """GiB in which every point fits uncompressed, with some to spare.

    Raises:
        ValueError: a model's configuration does not tell.
    """
    bytes_per_token = 0
    for model in models.values():
        if model.bytes_per_token is None:
            raise ValueError(f"--pool-gib: give it, {model.name} does not say what a token takes.")
        bytes_per_token = max(bytes_per_token, model.bytes_per_token)
    tokens = max((point.context + BLOCK_SIZE) * point.running for point in points)
    return 1.1 * (tokens + 4 * BLOCK_SIZE) * bytes_per_token / 2**30
