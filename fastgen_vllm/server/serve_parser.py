"""vLLM's parser of `serve`, with our options and defaults."""

from collections.abc import Sequence

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from fastgen_vllm.server.arguments import ON
from fastgen_vllm.server.config_file import read_config_file
from fastgen_vllm.server.parsers import USAGE, add_serve_arguments
from fastgen_vllm.server.preflight import HOST, PORT

_CONFIG = "--config"


class ServeParser(FlexibleArgumentParser):  # type: ignore[misc]
    """Takes `--fastgen` from a ``--config`` file, too, as people write it in YAML."""

    def load_config_file(self, file_path: str) -> list[str]:
        """The options of a file as arguments."""
        options = read_config_file(file_path)
        if not options:
            return []
        arguments: list[str] = super().load_config_file(file_path)
        if options.get("fastgen") is True:
            # YAML's `on`. vLLM takes it for a switch, and ours wants a value.
            arguments.insert(arguments.index("--fastgen") + 1, ON)
        return arguments


def serve_parser() -> ServeParser:
    """Return the parser; a memory limit and a model that nobody gave are None."""
    parser = ServeParser(prog="fastgen-vllm serve", usage=USAGE)
    make_arg_parser(parser)
    add_serve_arguments(parser)
    parser.set_defaults(
        subparser="serve",
        host=HOST,
        port=PORT,
        model=None,
        gpu_memory_utilization=None,
        shutdown_timeout=None,
    )
    return parser


def with_config_apart(arguments: Sequence[str]) -> list[str]:
    """Return arguments with ``--config=FILE``, which vLLM leaves out silently, in two.

    Raises:
        ValueError: two files, for which vLLM has an assertion.
    """
    found: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        found += [name, value] if name == _CONFIG and equals else [argument]
    if found.count(_CONFIG) > 1:
        raise ValueError(f"{_CONFIG} is given twice: put all options into one file.")
    return found
