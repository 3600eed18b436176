"""Load test: stock vLLM and FastGen on the same requests, pool and threads.

    python benchmark.py offline --engines stock,paper,balanced --pool-gib 0.125

Engines: `stock` is vLLM with the plugin installed but off, `bare` is vLLM without it, anything
else is a preset. Each measurement is a fresh process. Engines take turns within a round; the
table gives medians over rounds, and ratios against the first engine.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastgen_vllm.evaluation.facts import cpu_name

COLUMNS = {
    "tokens_per_second": "output tokens/s",
    "peak_running": "peak running",
    "mean_running": "mean running",
    "preemptions": "preemptions",
    "peak_blocks": "peak blocks",
    "kept_share": "kept share",
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    offline = commands.add_parser("offline", help="a batch of requests through the engine")
    offline.add_argument(
        "--engines", default="stock,paper,balanced", help="bare, stock, or presets"
    )
    offline.add_argument("--model", help="local path or hub name; default: the embedded model")
    offline.add_argument("--requests", type=int, default=32)
    offline.add_argument("--prompt-tokens", type=int, default=1024)
    offline.add_argument("--output-tokens", type=int, default=256)
    offline.add_argument("--pool-gib", type=float, default=0.125)
    offline.add_argument("--rounds", type=int, default=1)
    offline.add_argument("--json", type=Path, help="write all measurements here")
    offline.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments, arguments.one)))
        return 0
    return compare(arguments)


def compare(arguments: argparse.Namespace) -> int:
    """Measure every engine in turn, in subprocesses, and print the table."""
    engines = arguments.engines.split(",")
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for number in range(arguments.rounds):
        for engine in engines:
            print(f"round {number + 1}/{arguments.rounds}: {engine} ...", file=sys.stderr)
            command = [sys.executable, *sys.argv, "--one", engine]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[engine].append(json.loads(done.stdout.splitlines()[-1]))
    facts = {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "vllm": vllm_version(),
        "fastgen_vllm": version("fastgen-vllm"),
        "model": arguments.model or "smollm2-135m-instruct (embedded)",
        "requests": arguments.requests,
        "prompt_tokens": arguments.prompt_tokens,
        "output_tokens": arguments.output_tokens,
        "pool_gib": arguments.pool_gib,
        "rounds": arguments.rounds,
        "threads": runs[engines[0]][0]["threads"],
    }
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print("| engine | " + " | ".join(COLUMNS.values()) + " | tokens/s ratio | running ratio |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    medians = {
        engine: {
            column: statistics.median(run[column] for run in runs[engine]) for column in COLUMNS
        }
        for engine in engines
    }
    first = medians[engines[0]]
    for engine, row in medians.items():
        cells = [f"{value:.4g}" for value in row.values()]
        for column in ("tokens_per_second", "peak_running"):
            cells.append(f"{row[column] / first[column]:.2f}")
        print(f"| {engine} | " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": facts, "runs": runs}, indent=2))
    return 0


def measure(arguments: argparse.Namespace, engine_name: str) -> dict[str, Any]:
    """Run the batch through one engine in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if engine_name == "bare":  # as if FastGen was not installed
        os.environ["VLLM_PLUGINS"] = ""
    import torch
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from fastgen_vllm import llm_options
    from fastgen_vllm.models.embedded import ensure_default_model

    model = arguments.model or str(ensure_default_model())
    options: dict[str, Any] = dict(
        model=model,
        block_size=32,
        max_model_len=arguments.prompt_tokens + arguments.output_tokens + 32,
        max_num_seqs=arguments.requests,
        kv_cache_memory_bytes=int(arguments.pool_gib * 2**30),
        disable_log_stats=True,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
    )
    if engine_name not in ("bare", "stock"):
        options = llm_options(engine_name, **options)
    engine = LLMEngine.from_engine_args(EngineArgs(**options))
    scheduler = engine.engine_core.engine_core.scheduler
    prompts = text_prompts(
        AutoTokenizer.from_pretrained(model), arguments.requests, arguments.prompt_tokens
    )
    parameters = SamplingParams(
        temperature=0, max_tokens=arguments.output_tokens, ignore_eos=True, detokenize=False
    )
    engine.add_request("warm-up", {"prompt_token_ids": prompts[0][:64]}, parameters)
    while engine.has_unfinished_requests():
        engine.step()

    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), {"prompt_token_ids": prompt}, parameters)
    pool = scheduler.kv_cache_manager.block_pool
    running: list[int] = []
    blocks: list[int] = []
    preemptions: dict[str, int] = {}
    start = time.perf_counter()
    while engine.has_unfinished_requests():
        engine.step()
        running.append(len(scheduler.running))
        blocks.append(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
        for request in scheduler.requests.values():
            preemptions[request.request_id] = request.num_preemptions
    seconds = time.perf_counter() - start
    shares = scheduler.stats.kept_shares[1:] if hasattr(scheduler, "stats") else []
    return {
        "tokens_per_second": arguments.requests * arguments.output_tokens / seconds,
        "peak_running": max(running),
        "mean_running": statistics.mean(running),
        "preemptions": sum(preemptions.values()),
        "peak_blocks": max(blocks),
        "kept_share": statistics.mean(shares or [1.0]),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
    }


def text_prompts(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Cut prompts of exactly ``length`` tokens from the Python reference manual, by seed 0."""
    from pydoc_data.topics import topics

    tokens = tokenizer("\n\n".join(topics.values()), verbose=False).input_ids
    dice = random.Random(0)
    starts = [dice.randrange(len(tokens) - length) for _ in range(count)]
    return [tokens[start : start + length] for start in starts]


def vllm_version() -> str:
    """Version of vLLM, whichever distribution brought it."""
    import vllm

    return str(vllm.__version__)


if __name__ == "__main__":
    sys.exit(main())
