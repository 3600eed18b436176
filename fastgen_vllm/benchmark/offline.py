"""``benchmark.py offline``: a batch of requests through the engine, without a server."""

import argparse

from fastgen_vllm.benchmark import comparison
from fastgen_vllm.benchmark.batch import Settings
from fastgen_vllm.benchmark.engines import Engine
from fastgen_vllm.benchmark.facts import circumstances
from fastgen_vllm.benchmark.options import (
    BLOCK_SIZE,
    MAX_BATCHED_TOKENS,
    add_common,
    add_load,
    check_lengths,
    check_pool,
    default_threads,
    model_len,
)
from fastgen_vllm.benchmark.process import in_process_environment, run_worker
from fastgen_vllm.benchmark.results import Sample
from fastgen_vllm.benchmark.table import Column

COLUMNS = (
    Column("kept_share", "kept share", compared=False),
    Column("peak_running", "peak running"),
    Column("mean_running", "mean running"),
    Column("preemptions", "preemptions", compared=False),
    Column("output_throughput", "output tokens/s"),
    Column("ttft_ms", "TTFT ms"),
    Column("tpot_ms", "TPOT ms"),
    Column("decode_step_ms", "decode step ms"),
    Column("prefill_seconds", "prefill s"),
    Column("profiling_seconds", "profiling s", compared=False),
    Column("compaction_seconds", "compaction s", compared=False),
    Column("peak_blocks", "peak blocks", compared=False),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``offline``."""
    add_common(parser)
    add_load(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, and print a Markdown table.

    Raises:
        ValueError: an option cannot be used; nothing has been measured.
    """
    engines, models = comparison.sides_of(options)
    length = options.prompt_len + options.output_len
    check_lengths(models, length, "--prompt-len and --output-len")
    max_model_len = model_len(models, length)
    check_pool(models, options.pool_gib, max_model_len)
    threads = default_threads(options.threads)

    def measure(engine: Engine) -> list[Sample]:
        settings = Settings(
            engine=engine,
            model=models[engine.name].path,
            dtype=options.dtype,
            enforce_eager=options.enforce_eager,
            max_model_len=max_model_len,
            max_running=options.num_requests,
            pool_bytes=int(options.pool_gib * 2**30),
            seed=options.seed,
            num_requests=options.num_requests,
            prompt_len=options.prompt_len,
            output_len=options.output_len,
        )
        environment = {**in_process_environment(threads), **engine.environment}
        return run_worker("batch", settings, environment)

    facts = circumstances(
        options,
        engines,
        models,
        num_requests=options.num_requests,
        prompt_len=options.prompt_len,
        output_len=options.output_len,
        pool_gib=options.pool_gib,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=max(MAX_BATCHED_TOKENS, options.num_requests),
        prefix_caching=False,
    )
    return comparison.run(comparison.Comparison(engines, facts, COLUMNS, measure), options)
