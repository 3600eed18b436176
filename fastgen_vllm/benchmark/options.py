"""Options that the subcommands share, and what is refused before anything is measured."""

import argparse
import importlib.util
import os
from pathlib import Path
from typing import NoReturn, get_args

from fastgen_vllm.benchmark.model import Models
from fastgen_vllm.config import When, preset_names

PROMPT_LEN, OUTPUT_LEN = 1024, 256  # tokens, if nothing else is asked for
BLOCK_SIZE = 32  # on all sides: the smallest that FastGen's kernels take
MAX_BATCHED_TOKENS = 2048  # in a step, on all sides
_PLOTS = (".png", ".html")


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every comparison of engines needs."""
    add = parser.add_argument
    add("--engines", default="stock,fastgen", metavar="LIST",
        help="stock: vLLM with the plugin installed but off; bare: vLLM without it; fastgen; "
        "fastgen:PRESET or fastgen:FILE.yaml; with @MODEL behind it a side has a model of its own "
        "(default: %(default)s)")  # fmt: skip
    add("--fastgen", default="balanced", metavar="PRESET|FILE.yaml",
        help=f"of engine `fastgen`: {', '.join(preset_names())} or a YAML file "
        "(default: %(default)s)")  # fmt: skip
    add("--when", choices=get_args(When),
        help="of every side that compresses: in a full pool, or always (default: the preset's)"
        )  # fmt: skip
    add("--model", help="directory or hub name (default: the embedded model)")
    add("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    add("--enforce-eager", action="store_true", help="do not compile the model, on any side")
    add("--rounds", type=positive, default=1, metavar="N",
        help="each measures every engine once, in a fresh process; the order alternates "
        "(default: %(default)s)")  # fmt: skip
    add("--threads", type=positive, metavar="N", help="threads that compute, on every side")
    add("--seed", type=int, default=0, metavar="N", help="of the prompts (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="results, written after every round")
    add("--plot", type=Path, metavar="FILE.png|FILE.html", help="plots; as HTML with the table")


def add_load(parser: argparse.ArgumentParser) -> None:
    """Add the lengths, the number of requests and the pool."""
    add = parser.add_argument
    add("--num-requests", type=positive, default=32, metavar="N", help="(default: %(default)s)")
    add("--prompt-len", type=positive, default=PROMPT_LEN, metavar="N",
        help=f"tokens of a prompt, a passage of the Python manual (default: {PROMPT_LEN})",
        )  # fmt: skip
    add("--output-len", type=positive, default=OUTPUT_LEN, metavar="N",
        help=f"tokens that each request generates (default: {OUTPUT_LEN})")  # fmt: skip
    add("--pool-gib", type=above_zero, default=0.125, metavar="X",
        help="KV pool of each engine (default: %(default)s)")  # fmt: skip


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1.")
    return number


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0.")
    return number


def positives(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with commas between them; each once."""
    numbers = tuple(positive(part.strip()) for part in text.split(",") if part.strip())
    if not numbers or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: must be different numbers, such as 1,4,16.")
    return numbers


def allowed_cores() -> list[int]:
    """Cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def default_threads(asked: int | None) -> int:
    """Threads of an engine in a worker: what was asked for, else OpenMP's, else all cores."""
    if asked is not None:
        return asked
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(allowed_cores())


def check_files(options: argparse.Namespace) -> None:
    """Refuse files that could not be written once everything is measured.

    Raises:
        ValueError: names option, value and what to do.
    """
    check_file("--json", options.json)
    check_file("--plot", options.plot)
    if options.plot is not None:
        if options.plot.suffix not in _PLOTS:
            raise ValueError(f"--plot {options.plot}: must end in {' or '.join(_PLOTS)}.")
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--plot needs matplotlib: install `fastgen-vllm[eval]`.")
    if options.json is not None and options.json.suffix in _PLOTS:
        raise ValueError(f"--json {options.json}: name a file such as out.json, not the plot.")


def check_file(option: str, path: Path | None) -> None:
    """Refuse a file that could not be written.

    Raises:
        ValueError: names option, value and what to do.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no directory {path.parent}.")
    if path.is_dir():
        raise ValueError(f"{option} {path}: is a directory; name a file.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{option} {path}: cannot be written.")


def check_threads(threads: int | None) -> None:
    """Refuse more threads than cores.

    Raises:
        ValueError: names the option, its value and the limit.
    """
    cores = len(allowed_cores())
    if threads is not None and threads > cores:
        raise ValueError(f"--threads {threads}: at most {cores}, the cores allowed here.")


def check_lengths(models: Models, length: int, what: str) -> None:
    """Refuse requests beyond a model's length.

    Raises:
        ValueError: names the options, their sum and the limit.
    """
    for model in models.values():
        if model.max_len is not None and length > model.max_len:
            raise ValueError(
                f"{what}: {length} tokens, but {model.name} takes at most {model.max_len}."
            )


def check_pool(
    models: Models, pool_gib: float, length: int, requests: int = 1, advice: str = ""
) -> None:
    """Refuse a pool that does not hold so many requests of a length, uncompressed, on every side.

    Raises:
        ValueError: names the option, its value, the least, and the ``advice``.
    """
    sizes = [m.bytes_per_token for m in models.values() if m.bytes_per_token is not None]
    if sizes:
        blocks = requests * -(-length // BLOCK_SIZE) + 1  # vLLM keeps one for itself
        least = blocks * BLOCK_SIZE * max(sizes) / 2**30
        if pool_gib < least:
            raise ValueError(
                f"--pool-gib {pool_gib:g}: must be at least {least:.4f}, for "
                f"{requests} x {length} tokens.{advice}"
            )


def model_len(models: Models, length: int) -> int:
    """``max_model_len`` of all sides for requests of ``length``: a block more where it can be."""
    limits = [model.max_len for model in models.values() if model.max_len is not None]
    return min([length + BLOCK_SIZE, *limits])
