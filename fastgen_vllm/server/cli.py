"""The command ``fastgen-vllm``: vLLM's own OpenAI server with FastGen's options filled in."""

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from pydantic import ValidationError

import fastgen_vllm
from fastgen_vllm.api.plugin import allow_endpoints
from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.models.embedded import MODEL_NAME, ensure_default_model
from fastgen_vllm.server import preflight
from fastgen_vllm.server.arguments import merge_options, resolve_config
from fastgen_vllm.server.parsers import main_parser, serve_help_parser

#: Seconds that running requests have to finish when a server with FastGen is told to stop; vLLM
#: gives none.
SHUTDOWN_SECONDS = 30
#: Pool of the default model if the user sets none: vLLM would take 92 % of the machine's memory.
DEFAULT_MODEL_POOL_BYTES = 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; 2 for a mistake in the options."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["eval"]:
        from fastgen_vllm.evaluation import cli as evaluation

        return evaluation.main(arguments[1:])
    if arguments == ["check"]:
        from fastgen_vllm.server import check

        return check.main()
    if arguments[:1] != ["serve"]:
        given = main_parser(fastgen_vllm.__version__).parse_args(arguments or ["--help"])
        from fastgen_vllm.server.completion import script

        print(script(given.shell))  # the one command that is left
        return 0
    if {"-h", "--help"} & set(arguments):
        serve_help_parser().print_help()
        return 0
    allow_endpoints()
    try:
        if not any(argument.startswith("--help=") for argument in arguments):
            preflight.check(arguments[1:])
        args = prepare(arguments[1:])
    except (ValueError, OSError) as error:
        print(f"fastgen-vllm: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return _serve(args)


def prepare(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments for vLLM's server: what the user gave, checked, with ours filled in.

    Raises:
        ValueError: an option that vLLM or FastGen refuses.
        OSError: a file, such as that of a chat template, cannot be read.
    """
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args

    from fastgen_vllm.integration.options import keep_compiled

    cli_env_setup()
    keep_compiled()
    args = _parse(arguments)
    configure_logging_from_args(args)
    try:
        validate_parsed_serve_args(args)
    except TypeError as error:  # vLLM's choice for options that need another one
        raise ValueError(str(error)) from error
    config = resolve_config(args.fastgen, args.additional_config)
    if args.shutdown_timeout is None:
        args.shutdown_timeout = 0 if config is None else SHUTDOWN_SECONDS
    if config is not None:
        _fill_in_fastgen(args, config)
    _fill_in_model(args)
    if config is not None:
        _check_engine_config(args)
    return args


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    from vllm.engine.arg_utils import EngineArgs

    from fastgen_vllm.server.serve_parser import serve_parser, with_config_apart

    args: argparse.Namespace = serve_parser().parse_args(with_config_apart(arguments))
    args.model = args.model_tag or args.model
    if args.gpu_memory_utilization is None:
        args.gpu_memory_utilization = EngineArgs.gpu_memory_utilization
        if args.model is None and args.kv_cache_memory_bytes is None:
            args.kv_cache_memory_bytes = DEFAULT_MODEL_POOL_BYTES
    return args


def _fill_in_model(args: argparse.Namespace) -> None:
    if args.model is None:
        args.model = str(ensure_default_model())
        args.served_model_name = args.served_model_name or [MODEL_NAME]


def _fill_in_fastgen(args: argparse.Namespace, config: FastGenConfig) -> None:
    from fastgen_vllm.integration.options import engine_options

    ours = engine_options(config, metrics=True)
    given = {option: getattr(args, option) for option in ours}
    vars(args).update(merge_options(given, ours))


def _check_engine_config(args: argparse.Namespace) -> None:
    """Refuse, before any process is started, what FastGen cannot be combined with."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from fastgen_vllm.integration.options import check_engine_config

    # vLLM completes a configuration in place: the server is to start from an untouched one.
    engine_args = AsyncEngineArgs.from_cli_args(copy.deepcopy(args))
    vllm_config = engine_args.create_engine_config(
        UsageContext.OPENAI_API_SERVER, headless=args.headless
    )
    check_engine_config(vllm_config)
    _check_compiled_code(vllm_config)


def _check_compiled_code(vllm_config: Any) -> None:
    """Refuse a folder of compiled code that cannot be written: vLLM would end in a traceback."""
    from vllm import envs
    from vllm.config import CompilationMode

    compilation = vllm_config.compilation_config
    ahead = compilation.mode != CompilationMode.NONE and envs.VLLM_USE_AOT_COMPILE
    if not ahead and compilation.mode != CompilationMode.VLLM_COMPILE:
        return  # nothing is kept there
    folder = Path(compilation.cache_dir or Path(envs.VLLM_CACHE_ROOT, "torch_compile_cache"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"vLLM keeps compiled code in {folder}: {error.strerror}. Set VLLM_CACHE_ROOT or "
            "XDG_CACHE_HOME to a folder that can be written, or give --enforce-eager."
        ) from error


def _serve(args: argparse.Namespace) -> int:
    from vllm.entrypoints.cli.serve import ServeSubcommand

    try:
        ServeSubcommand.cmd(args)
    except KeyboardInterrupt:  # before the server had taken over the signals
        return 130
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        messages = (problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        return " ".join("; ".join(messages).split())
    return " ".join(str(error).split())
