"""The command ``fastgen-vllm completion``: our commands with all options, vLLM's too."""

import argparse

import shtab

from fastgen_vllm.evaluation.cli import parser as eval_parser
from fastgen_vllm.server.parsers import (
    EVAL_HELP,
    SERVE_HELP,
    add_plain_commands,
    add_serve_arguments,
)


def script(shell: str) -> str:
    """Return the completion script for ``shell``, of what is installed now.

    It has vLLM's options as they are today, so that completing needs no import of vLLM, which
    takes seconds; after an upgrade the script is made again.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="fastgen-vllm")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers(parser_class=FlexibleArgumentParser)
    serve = commands.add_parser("serve", help=SERVE_HELP)
    make_arg_parser(serve)
    add_serve_arguments(serve)
    _complete_files(serve, ("--config", "--fastgen", "--chat-template"))
    evaluation = commands.add_parser(
        "eval", help=EVAL_HELP, parents=[eval_parser()], add_help=False
    )
    _complete_files(evaluation, ("--preset", "--json"))
    add_plain_commands(commands)
    return str(shtab.complete(parser, shell))


def _complete_files(parser: argparse.ArgumentParser, options: tuple[str, ...]) -> None:
    for action in parser._actions:
        if set(action.option_strings) & set(options):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
