"""The command line of ``benchmark.py``."""

import argparse
import sys
from collections.abc import Sequence

from fastgen_vllm.benchmark import offline, serve, steps
from fastgen_vllm.benchmark.options import Parser
from fastgen_vllm.benchmark.process import MeasurementFailed, stoppable

_KERNELS = "kernels"


def main(description: str, arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; 2 for a mistake in the options.

    Args:
        description: what `--help` says first.
        arguments: those of the command line by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    made = parser(description, with_kernels=given[:1] == [_KERNELS])
    options, rest = made.parse_known_args(given)
    if rest and options.command != "serve":
        made.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with stoppable():
            return _run(options, rest)
    except (ValueError, OSError) as error:
        line = " ".join(str(error).split())
        print(f"benchmark.py {options.command}: error: {line}", file=sys.stderr)
        return 2
    except MeasurementFailed as failure:
        print(f"benchmark.py {options.command}: error:\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"benchmark.py {options.command}: error: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if options.command == _KERNELS:
        from fastgen_vllm.benchmark import kernels

        return kernels.run(options)
    if options.command == "serve":
        return serve.run(options, rest)
    return offline.run(options) if options.command == "offline" else steps.run(options)


def parser(description: str, *, with_kernels: bool) -> argparse.ArgumentParser:
    """Return the parser; options of `kernels`, which loads PyTorch, only if they are needed."""
    made = Parser(
        prog="benchmark.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    kernels_parser = commands.add_parser(_KERNELS, help="time of single kernels")
    if with_kernels:
        from fastgen_vllm.benchmark import kernels

        kernels.add_arguments(kernels_parser)
    for name, command, text in (
        ("offline", offline, "a batch of requests through the engine"),
        ("serve", serve, "a server, driven by vLLM's serving benchmark"),
        ("steps", steps, "decode steps against context length and running requests"),
    ):
        command.add_arguments(
            commands.add_parser(name, help=text, description=command.__doc__, allow_abbrev=False)
        )
    return made
