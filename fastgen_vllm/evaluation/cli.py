"""The command ``fastgen-vllm eval``."""

import argparse
import dataclasses
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fastgen_vllm.evaluation.parts import PartsFile
from fastgen_vllm.evaluation.settings import Settings

_DEFAULTS = Settings()
_INTERRUPTED = 130  # as shells report Ctrl-C
T = TypeVar("T")


def parser() -> argparse.ArgumentParser:
    """Return the parser of `eval`."""
    made = argparse.ArgumentParser(
        prog="fastgen-vllm eval",
        description="Measure what compression costs, on the real engine: divergence from the "
        "uncompressed model, retrieval, benchmarks and memory.",
        epilog="Lists are given with commas: --keep 0.25,0.5. An empty one (--keep '') is none.",
    )
    add = made.add_argument
    add("--model", help="directory or hub name; by default the embedded model")
    add("--preset", dest="presets", action="append", metavar="PRESET|FILE.yaml",
        help="what to measure; repeat for several (default: balanced)")  # fmt: skip
    _add_list(made, "keep", float, "kept shares at which presets of policy coverage and peers run")
    _add_list(made, "recovery", float, "thresholds T at which presets run as well")
    add("--ablation", action="store_true", help="the paper's ladder without each of its rungs")
    add("--peers", action="store_true", help="other methods, at the shares of --keep")
    _add_list(made, "protocols", str, "what to measure beside --tasks")
    add("--texts", action="append", metavar="KIND=FILE", default=[],
        help="texts of your own instead of the built-in ones; repeat for several")  # fmt: skip
    _add_list(made, "lengths", int, "prompt tokens of forced continuations")
    _add_number(made, "per-kind", int, "passages of each kind of text and length")
    _add_number(made, "continuation", int, "forced tokens after each passage")
    _add_list(made, "retrieval", str, "retrieval tasks; ruler: RULER's eleven")
    _add_list(made, "retrieval-lengths", int, "prompt tokens of retrieval questions")
    _add_number(made, "samples", int, "prompts of each protocol and length")
    _add_list(made, "tasks", str, "benchmarks for models that can do them: gsm8k, humaneval")
    _add_number(made, "problems", int, "problems of each benchmark")
    _add_number(made, "seed", int, "same seed, same texts, questions and intervals")
    _add_number(made, "found", float, "share of every prompt that the prefix cache has already")
    add("--found-by", default=_DEFAULTS.found_by, choices=["fastgen", "stock"],
        help="whose request: compressed, or stock (default: %(default)s)")  # fmt: skip
    _add_number(made, "pool-gib", float, "KV pool of the engine")
    add("--dtype", default=_DEFAULTS.dtype, choices=["float32", "bfloat16", "float16"])
    add("--quick", action="store_true", help="a small run of everything, in minutes")
    add("--json", type=Path, default=Path("fastgen-eval.json"), metavar="FILE",
        help="results (default: %(default)s); the report goes beside it as .html")  # fmt: skip
    add("--resume", action="store_true", help="go on with an interrupted run of these options")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(list(arguments))
    parts_path = args.json.parent / f"{args.json.name}.parts"
    try:
        return _run(settings_of(args), args.json, parts_path, resume=args.resume)
    except ValueError as error:
        return _fail(str(error), 2, parts_path)
    except OSError as error:
        return _fail(f"{error}", 1, parts_path)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED, parts_path)
    except Exception as error:
        log = args.json.parent / f"{args.json.name}.error.txt"
        log.write_text(traceback.format_exc(), "utf-8")
        return _fail(f"{type(error).__name__}: {error} (details in {log})", 1, parts_path)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings that the command line asks for.

    Raises:
        ValueError: a value is out of range; names it.
    """
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in names}
    given["presets"] = tuple(args.presets or _DEFAULTS.presets)
    given["texts"] = tuple(args.texts)
    settings = Settings(**given).checked()
    return settings.quick() if args.quick else settings


def _run(settings: Settings, json_path: Path, parts_path: Path, *, resume: bool) -> int:
    if not json_path.parent.is_dir():
        raise ValueError(f"--json {json_path}: there is no directory {json_path.parent}.")
    if json_path.suffix == ".html" or json_path.is_dir():
        raise ValueError(f"--json {json_path}: name a file, such as out.json, not the report.")
    _quieten()

    from tqdm import tqdm

    from fastgen_vllm.evaluation.comparison import compare, comparison_table
    from fastgen_vllm.evaluation.report import write_report
    from fastgen_vllm.evaluation.run import evaluate, plan
    from fastgen_vllm.evaluation.statistics import markdown, summarize, summary_table, tasks_beyond

    planned = plan(settings)
    parts = PartsFile(parts_path, settings.asked(), resume=resume)
    with tqdm(unit="part", dynamic_ncols=True) as bar:

        def progress(done: int, total: int, group: str) -> None:
            bar.total = total
            bar.set_description(group, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        results = evaluate(planned, parts, progress)
    html_path = json_path.with_suffix(".html")
    json_path.write_text(results.model_dump_json(indent=1), "utf-8")
    write_report(results, html_path)
    parts_path.unlink()
    print(markdown(summary_table(summarize(results))))
    beyond = tasks_beyond(results.retrieval)
    if beyond:
        print(f"Not among the right answers, beyond the uncompressed model: {beyond}.")
    comparisons = compare(results)
    if comparisons:
        print(f"\n{markdown(comparison_table(comparisons))}")
    print(f"Results: {json_path}. Report: {html_path}.")
    return 0


def _quieten() -> None:
    """Leave the screen to the progress bar; errors are raised anyway. Before vLLM is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _fail(message: str, code: int, parts_path: Path) -> int:
    print(f"fastgen-vllm eval: error: {message}", file=sys.stderr)
    if parts_path.exists():
        print(f"Finished parts are in {parts_path}: go on with --resume.", file=sys.stderr)
    return code


def _add_list(
    made: argparse.ArgumentParser, name: str, kind: Callable[[str], T], text: str
) -> None:
    default = getattr(_DEFAULTS, name.replace("-", "_"))
    shown = ",".join(map(str, default)) or "none"

    def parse(value: str) -> tuple[T, ...]:
        return tuple(kind(part) for part in value.split(",") if part.strip())

    parse.__name__ = f"list of {kind.__name__}"
    made.add_argument(
        f"--{name}", type=parse, default=default, metavar="LIST", help=f"{text} (default: {shown})"
    )


def _add_number(
    made: argparse.ArgumentParser, name: str, kind: Callable[[str], T], text: str
) -> None:
    default = getattr(_DEFAULTS, name.replace("-", "_"))
    made.add_argument(
        f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: {default})"
    )
