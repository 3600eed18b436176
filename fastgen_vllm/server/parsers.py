"""What the command line says of itself; vLLM's own options are added elsewhere."""

import argparse
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from fastgen_vllm.config import FastGenConfig, preset_names
from fastgen_vllm.models.embedded import MODEL_NAME
from fastgen_vllm.server.arguments import DEFAULT, OFF, ON, added_source

USAGE = "fastgen-vllm serve [MODEL] [--fastgen PRESET|FILE.yaml|off] [any `vllm serve` option]"
SHELLS = ("bash", "zsh")
SERVE_HELP = "serve a model over HTTP"
EVAL_HELP = "measure what compression costs"
MODEL_HELP = f"directory or hub name of the model; by default the embedded {MODEL_NAME}"
_DESCRIPTION = f"""\
Serve a model with vLLM's own OpenAI-compatible server and FastGen's KV-cache compression.

It listens on 127.0.0.1 unless --host is given. Without MODEL it serves {MODEL_NAME},
out of a pool of 1 GiB unless --kv-cache-memory-bytes or --gpu-memory-utilization is given.
Told to stop, it lets running requests finish, for 30 seconds unless --shutdown-timeout or
--fastgen off is given.
"""


def main_parser(version: str) -> argparse.ArgumentParser:
    """Return the parser of everything but `serve` and `eval`."""
    parser = argparse.ArgumentParser(
        prog="fastgen-vllm",
        description="vLLM with FastGen: every attention head keeps only the tokens it looks at.",
        epilog="More: fastgen-vllm serve --help, fastgen-vllm eval --help",
    )
    parser.add_argument("--version", action="version", version=f"fastgen-vllm {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("serve", help=SERVE_HELP, usage=USAGE, add_help=False)
    commands.add_parser("eval", help=EVAL_HELP, add_help=False)
    add_plain_commands(commands)
    return parser


def add_plain_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the commands that are parsed by the parser of everything."""
    commands.add_parser("check", help="tell whether this machine has what FastGen needs")
    completion = commands.add_parser(
        "completion", help="print a script for your shell's completion"
    )
    completion.add_argument("shell", choices=SHELLS)


def serve_help_parser() -> argparse.ArgumentParser:
    """Return a parser of `serve` for its help page, which needs no vLLM to be imported."""
    parser = argparse.ArgumentParser(
        prog="fastgen-vllm serve",
        usage=USAGE,
        description=_DESCRIPTION,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    add_serve_arguments(parser)
    return parser


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add our own options to a parser of `serve`."""
    group = parser.add_argument_group("FastGen", "KV-cache compression")
    group.add_argument(
        "--fastgen",
        metavar="PRESET|FILE.yaml|off",
        action=_Source,
        default=DEFAULT,
        help=f"{', '.join(preset_names())}, a YAML file, {ON} (the default), or {OFF}: plain vLLM; "
        f"--fastgen.OPTION VALUE changes one of its options (default: {DEFAULT})",
    )
    # A vLLM --config file that says `fastgen: off` means a YAML boolean and arrives as this.
    group.add_argument(
        "--no-fastgen",
        dest="fastgen",
        action="store_const",
        const=OFF,
        default=DEFAULT,
        help=f"the same as --fastgen {OFF}",
    )


class _Source(argparse.Action):
    """A preset or file, and single options, which may come one by one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            source = added_source(getattr(namespace, self.dest), values)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, source)


def _epilog() -> str:
    options = "\n".join(_describe(FastGenConfig))
    return (
        f"options of a FastGen YAML file:\n{options}\n\n"
        "One of them is changed by --fastgen.OPTION VALUE.\n"
        "vLLM's options: fastgen-vllm serve --help=all, or --help=KEYWORD."
    )


def _describe(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _describe(type(field.default), f"{prefix}{name}.")
        else:
            legal = ""
            if get_origin(field.annotation) is Literal:
                legal = f"{', '.join(get_args(field.annotation))}; "
            default = f"({legal}default: {field.default})"
            yield f"  {prefix + name:16} {field.description} {default}"
