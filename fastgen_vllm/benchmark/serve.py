"""``benchmark.py serve``: a server, driven by vLLM's own serving benchmark.

Flags that are not listed here go to that benchmark as they are, such as --request-rate,
--max-concurrency, --goodput, --metric-percentiles, --dataset-name (see `vllm bench serve`).
Without --dataset-name the prompts are passages of the Python manual.
"""

import argparse
import importlib.util
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastgen_vllm.benchmark import comparison
from fastgen_vllm.benchmark.client import check_flags, drive, metrics_of
from fastgen_vllm.benchmark.datasets import Settings as DatasetSettings
from fastgen_vllm.benchmark.engines import Engine, baseline
from fastgen_vllm.benchmark.facts import circumstances
from fastgen_vllm.benchmark.model import Model, Models
from fastgen_vllm.benchmark.options import (
    BLOCK_SIZE,
    MAX_BATCHED_TOKENS,
    OUTPUT_LEN,
    PROMPT_LEN,
    add_common,
    add_load,
    allowed_cores,
    check_lengths,
    check_pool,
    model_len,
    positive,
    positives,
)
from fastgen_vllm.benchmark.process import (
    MeasurementFailed,
    compiler_environment,
    in_process_environment,
    run_worker,
)
from fastgen_vllm.benchmark.results import Load, Sample
from fastgen_vllm.benchmark.server import HOST, Counters, Server, Watch
from fastgen_vllm.benchmark.table import Column

COLUMNS = (
    Column("kept_share", "kept share", compared=False),
    Column("peak_running", "peak running"),
    Column("mean_running", "mean running"),
    Column("preemptions", "preemptions", compared=False),
    Column("failed", "failed", compared=False),
    Column("output_throughput", "output tokens/s"),
    Column("request_goodput", "goodput requests/s"),
    Column("ttft_ms", "TTFT ms"),
    Column("p99_ttft_ms", "p99 TTFT ms"),
    Column("tpot_ms", "TPOT ms"),
    Column("p99_tpot_ms", "p99 TPOT ms"),
)

#: Flags of the client that say where the server is and where results go.
_OURS = ("--base-url", "--host", "--port", "--model", "--save-result", "--append-result",
         "--result-dir", "--result-filename", "--served-model-name", "--num-prompts")  # fmt: skip
_WARM_UPS = 2  # requests


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``serve``; the others go to vLLM's benchmark."""
    add_common(parser)
    add_load(parser)
    parser.set_defaults(prompt_len=None, output_len=None)  # a given data set has its own
    add = parser.add_argument
    add("--concurrency", type=positives, metavar="LIST",
        help="most open requests, each measured in turn, such as 1,4,16,64 "
        "(default: no limit)")  # fmt: skip
    add("--port", type=positive, metavar="N", help="of the servers (default: a free one)")
    add("--max-model-len", type=positive, metavar="N", help="of the servers (default: as needed)")


def run(options: argparse.Namespace, client_flags: Sequence[str]) -> int:
    """Measure, and print a Markdown table.

    Raises:
        ValueError: an option cannot be used; nothing has been measured.
    """
    engines, models = comparison.sides_of(options)
    _check_client_flags(options, client_flags)
    if not _names_dataset(client_flags):
        options.prompt_len = options.prompt_len or PROMPT_LEN
        options.output_len = options.output_len or OUTPUT_LEN
    max_model_len = _max_model_len(options, client_flags, models)
    port = free_port(options.port)
    if client_flags:
        check_flags(client_flags)
    concurrencies = options.concurrency or (None,)
    threads = options.threads or max(1, len(allowed_cores()) - 1)
    server_flags = _server_flags(options, max_model_len)
    with tempfile.TemporaryDirectory(prefix="fastgen-benchmark-") as directory:
        # The same text for all; its length is counted in tokens of the baseline's model.
        first = models[baseline(engines).name]
        dataset = _dataset(options, client_flags, first, Path(directory))
        flags = [
            *("--host", HOST, "--port", str(port)),
            *("--num-prompts", str(options.num_requests), "--seed", str(options.seed)),
            *("--disable-tqdm", "--num-warmups", str(_WARM_UPS), "--temperature", "0"),
            *dataset.flags,
            *client_flags,
        ]

        def measure(engine: Engine) -> list[Sample]:
            environment = _server_environment(threads)
            path = models[engine.name].path
            with Server(engine, path, port, server_flags, environment) as server:
                server.wait()
                asked = [*flags, "--model", path]
                return [_measure(server, asked, limit) for limit in concurrencies]

        facts = circumstances(
            options,
            engines,
            models,
            num_requests=options.num_requests,
            prompt_len=options.prompt_len,
            output_len=options.output_len,
            pool_gib=options.pool_gib,
            concurrency=list(options.concurrency) if options.concurrency else None,
            dataset=dataset.name,
            client=list(client_flags),
            max_model_len=max_model_len,
            max_num_seqs=_max_running(options),
            block_size=BLOCK_SIZE,
            max_num_batched_tokens=max(MAX_BATCHED_TOKENS, _max_running(options)),
            prefix_caching=False,
        )
        return comparison.run(comparison.Comparison(engines, facts, COLUMNS, measure), options)


def free_port(asked: int | None) -> int:
    """A port that nobody listens on.

    Raises:
        ValueError: the one that was asked for is taken, or none.
    """
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, asked or 0))
        except (OSError, OverflowError) as error:
            raise ValueError(f"--port {asked}: cannot be used: {error}. Leave it out.") from None
        port: int = probe.getsockname()[1]
    return port


class _Dataset(NamedTuple):
    name: str
    flags: tuple[str, ...]


def _measure(server: Server, flags: Sequence[str], limit: int | None) -> Sample:
    limited = () if limit is None else ("--max-concurrency", str(limit))
    before = server.counters()
    try:
        with Watch(server) as watch:
            result = drive([*flags, *limited])
    except MeasurementFailed as failure:
        raise MeasurementFailed(f"{failure}\nserver:\n{server.last_lines()}") from None
    metrics = metrics_of(result) | _counted(before, server.counters())
    timeline = watch.busy()
    if timeline.running:
        metrics["peak_running"] = max(timeline.running)
        metrics["mean_running"] = sum(timeline.running) / len(timeline.running)
    if (threads := server.threads) is not None:
        metrics["threads"] = threads
    return Sample(load=Load(concurrency=limit), metrics=metrics, timeline=timeline)


def _counted(before: Counters, after: Counters) -> dict[str, float]:
    """What the server counted under one load, its warm-up included."""
    profiled = after.kept_count - before.kept_count
    return {
        "preemptions": after.preemptions - before.preemptions,
        "kept_share": (after.kept_sum - before.kept_sum) / profiled if profiled else 1.0,
        "profiling_seconds": after.profiling_seconds - before.profiling_seconds,
        "compaction_seconds": after.compaction_seconds - before.compaction_seconds,
    }


def _check_client_flags(options: argparse.Namespace, client_flags: Sequence[str]) -> None:
    names = {flag.partition("=")[0] for flag in client_flags if flag.startswith("--")}
    for name in _OURS:
        if name in names:
            instead = "use --num-requests" if name == "--num-prompts" else "leave it out"
            raise ValueError(f"{name}: is set for each side by this command; {instead}.")
    if options.concurrency and "--max-concurrency" in names:
        raise ValueError("--max-concurrency: give it or --concurrency, not both.")


def _names_dataset(client_flags: Sequence[str]) -> bool:
    return any(flag.partition("=")[0] == "--dataset-name" for flag in client_flags)


def _max_model_len(
    options: argparse.Namespace, client_flags: Sequence[str], models: Models
) -> int | None:
    """``max_model_len`` of the servers; None is the model's, for data sets of unknown lengths."""
    if options.max_model_len is not None:
        check_lengths(models, options.max_model_len, "--max-model-len")
        check_pool(models, options.pool_gib, options.max_model_len)
        return int(options.max_model_len)
    if _names_dataset(client_flags):
        limits = [model.max_len for model in models.values() if model.max_len is not None]
        if limits:
            check_pool(models, options.pool_gib, max(limits), advice=" Or set --max-model-len.")
        return None
    length = options.prompt_len + options.output_len
    check_lengths(models, length, "--prompt-len and --output-len")
    max_model_len = model_len(models, length)
    check_pool(models, options.pool_gib, max_model_len)
    return max_model_len


def _dataset(
    options: argparse.Namespace, client_flags: Sequence[str], model: Model, directory: Path
) -> _Dataset:
    """The user's data set, or ours: text, and random tokens where pandas is missing."""
    if _names_dataset(client_flags):
        given = (("--input-len", options.prompt_len), ("--output-len", options.output_len))
        flags = tuple(part for name, n in given if n is not None for part in (name, str(n)))
        return _Dataset("given", flags)
    lengths = str(options.prompt_len), str(options.output_len)
    if importlib.util.find_spec("pandas") is None:  # the client reads text files with it
        random = ("--dataset-name", "random", "--random-input-len", lengths[0])
        return _Dataset("random tokens", (*random, "--random-output-len", lengths[1]))
    path = directory / "manual.jsonl"
    settings = DatasetSettings(
        path=path,
        model=model.path,
        num_requests=options.num_requests,
        prompt_len=options.prompt_len,
        seed=options.seed,
    )
    run_worker("dataset", settings, in_process_environment(1))
    return _Dataset(
        "Python manual",
        (
            *("--dataset-name", "custom", "--dataset-path", str(path), "--skip-chat-template"),
            *("--disable-shuffle", "--custom-output-len", lengths[1], "--ignore-eos"),
        ),
    )


def _server_flags(options: argparse.Namespace, max_model_len: int | None) -> list[str]:
    flags = [
        *("--dtype", options.dtype, "--block-size", str(BLOCK_SIZE)),
        *("--kv-cache-memory-bytes", str(int(options.pool_gib * 2**30))),
        *("--max-num-seqs", str(_max_running(options))),
        *("--max-num-batched-tokens", str(max(MAX_BATCHED_TOKENS, _max_running(options)))),
        *("--no-enable-prefix-caching", "--uvicorn-log-level", "warning"),
    ]
    if options.enforce_eager:
        flags.append("--enforce-eager")
    return flags if max_model_len is None else [*flags, "--max-model-len", str(max_model_len)]


def _max_running(options: argparse.Namespace) -> int:
    """Most requests in a step: as many as the client can have open."""
    return int(max(options.concurrency or (options.num_requests,)))


def _server_environment(threads: int) -> dict[str, str]:
    """Threads of the worker, bound to the first cores as vLLM binds them if left alone."""
    cores = ",".join(map(str, allowed_cores()[:threads]))
    bound = {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_LOGGING_LEVEL": "INFO"}
    return bound | compiler_environment()
