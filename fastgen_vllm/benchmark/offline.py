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
    positive,
)
from fastgen_vllm.benchmark.process import in_process_environment, run_worker
from fastgen_vllm.benchmark.results import Sample
from fastgen_vllm.benchmark.table import Column

COLUMNS = (
    Column("kept_share", "kept share", compared=False),
    Column("computed_tokens", "prompt tokens computed"),
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
    Column("peak_blocks", "peak blocks"),
)
BATCH, SHARED_PREFIX, CHAT = "batch", "shared-prefix", "chat"
TURNS, TURN_LEN = 5, 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``offline``."""
    add_common(parser)
    add_load(parser)
    add = parser.add_argument
    add("--workload", default=BATCH, choices=[BATCH, SHARED_PREFIX, CHAT],
        help="batch: prompts that have nothing in common, without prefix caching; shared-prefix: "
        "all begin with the same --shared-len tokens, with prefix caching; chat: each request is a "
        "conversation of --turns, the next of which follows its answer (default: %(default)s)",
        )  # fmt: skip
    add("--shared-len", type=positive, metavar="N",
        help="of shared-prefix (default: three quarters of --prompt-len)")  # fmt: skip
    add("--turns", type=positive, metavar="N", help=f"of chat (default: {TURNS})")
    add("--turn-len", type=positive, metavar="N",
        help=f"tokens that each further turn of chat asks with (default: {TURN_LEN})")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Measure, and print a Markdown table.

    Raises:
        ValueError: an option cannot be used; nothing has been measured.
    """
    engines, models = comparison.sides_of(options)
    shared_len = _shared_len(options)
    turns, turn_len = _turns(options)
    length = options.prompt_len + options.output_len * turns + turn_len * (turns - 1)
    of_all = ", of all turns" if turns > 1 else ""
    check_lengths(models, length, f"--prompt-len and --output-len{of_all}")
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
            shared_len=shared_len,
            turns=turns,
            turn_len=turn_len,
            prefix_caching=options.workload != BATCH,
        )
        environment = {**in_process_environment(threads), **engine.environment}
        return run_worker("batch", settings, environment)

    facts = circumstances(
        options,
        engines,
        models,
        workload=options.workload,
        num_requests=options.num_requests,
        prompt_len=options.prompt_len,
        shared_len=shared_len,
        turns=turns,
        turn_len=turn_len,
        output_len=options.output_len,
        pool_gib=options.pool_gib,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=max(MAX_BATCHED_TOKENS, options.num_requests),
        prefix_caching=options.workload != BATCH,
    )
    return comparison.run(comparison.Comparison(engines, facts, COLUMNS, measure), options)


def _shared_len(options: argparse.Namespace) -> int:
    """First tokens that all prompts have in common.

    Raises:
        ValueError: the options contradict each other.
    """
    if options.workload != SHARED_PREFIX:
        if options.shared_len is not None:
            raise ValueError(f"--shared-len is of --workload {SHARED_PREFIX}.")
        return 0
    shared = options.shared_len
    shared_len: int = options.prompt_len * 3 // 4 if shared is None else shared
    if shared_len >= options.prompt_len:
        raise ValueError(
            f"--shared-len {shared_len}: must be less than --prompt-len {options.prompt_len}."
        )
    return shared_len


def _turns(options: argparse.Namespace) -> tuple[int, int]:
    """Turns of a conversation, and tokens that a further one asks with.

    Raises:
        ValueError: the options contradict each other.
    """
    if options.workload == CHAT:
        return options.turns or TURNS, options.turn_len or TURN_LEN
    for option, value in (("--turns", options.turns), ("--turn-len", options.turn_len)):
        if value is not None:
            raise ValueError(f"{option} is of --workload {CHAT}.")
    return 1, 0
