"""The command line, up to the point where vLLM's server would start."""

import argparse
import os
import shlex
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

import fastgen_vllm
from fastgen_vllm.config import CONFIG_KEY, load_config, preset_names
from fastgen_vllm.integration.options import (
    COMPILED_VARIABLE,
    COMPILER_VARIABLE,
    keep_compiled,
)
from fastgen_vllm.models.embedded import MODEL_NAME
from fastgen_vllm.server import cli
from fastgen_vllm.server.arguments import resolve_config
from fastgen_vllm.server.completion import script


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; return the one line it prints."""
    with socket.socket() as probe:  # the default port may be taken
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert cli.main(["serve", *arguments, "--port", str(port)]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("fastgen-vllm: error: ")]
    assert len(errors) == 1, lines
    return errors[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fastgen-vllm {fastgen_vllm.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(arguments)
    assert "serve" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["some/model", "--port", "1", "--help"]])
def test_serve_help_tells_all_of_ours(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 0
    text = capsys.readouterr().out
    for word in ["127.0.0.1", "1 GiB", "--help=all", MODEL_NAME, "off", *preset_names()]:
        assert word in text
    for option in [
        "policy",
        "recovery_norm",
        "keep",
        "keep_tokens",
        "head_weights",
        "paper.local",
        "paper.without",
        "coverage.sinks",
        "coverage.generated",
        "unsupported",
    ]:
        assert f"\n  {option} " in text


def test_vllms_help_is_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["serve", "--help=max-model-len"])
    assert "--max-model-len" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nope"], ["--nope"], ["serve", "--nope"]])
def test_unknown_words_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "error: " in capsys.readouterr().err


def test_unknown_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--fastgen nope: no such preset" in error_of(capsys, "--fastgen", "nope")


@pytest.mark.parametrize("text", ["recover: 0.9", "recovery: 7", "policy: ["])
def test_bad_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = error_of(capsys, "--fastgen", str(path))
    assert "recover" in message or "not valid YAML" in message


def test_bad_single_option(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, "--additional-config.fastgen.recovery", "7")
    assert "recovery=7" in message


def test_a_policy_that_cannot_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, "--additional-config.fastgen.policy", "no_such_module:Mine")
    assert "policy='no_such_module:Mine'" in message and "PYTHONPATH" in message


def test_keep_with_another_policy(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--fastgen", "paper", "--additional-config.fastgen.keep", "0.3"]
    assert "keep=0.3: Value error, needs policy coverage" in error_of(capsys, *flags)


@pytest.mark.parametrize("flag", ["--worker-cls", "--scheduler-cls"])
def test_foreign_classes(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{flag}='a.B' cannot be combined" in error_of(capsys, flag, "a.B")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--enable-auto-tool-choice"], "--tool-call-parser"),
        (["/no/such/model"], "/no/such/model"),
        (["--max-model-len", "100000"], "max_model_len"),
        (["--pipeline-parallel-size", "2"], "--pipeline-parallel-size"),
    ],
)
def test_what_vllm_or_fastgen_refuses_is_one_line(
    arguments: list[str], named: str, default_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in error_of(capsys, *arguments)


def test_defaults(default_model: Path) -> None:
    args = cli.prepare([])
    assert args.model == str(default_model)
    assert args.served_model_name == [MODEL_NAME]
    assert (args.host, args.port) == ("127.0.0.1", 8000)
    assert args.kv_cache_memory_bytes == cli.DEFAULT_MODEL_POOL_BYTES
    assert args.gpu_memory_utilization == stock([]).gpu_memory_utilization
    assert args.worker_cls.startswith("fastgen_vllm.")
    assert args.scheduler_cls.startswith("fastgen_vllm.")
    config = load_config("balanced").model_dump(mode="json")
    assert args.additional_config[CONFIG_KEY] == config


def test_users_options_stay(default_model: Path) -> None:
    args = cli.prepare(
        f"{default_model} --served-model-name mine --host 0.0.0.0 --block-size 64"
        " --fastgen paper --additional-config.other 1"
        " --additional-config.fastgen.recovery 0.8".split()
    )
    assert (args.model, args.served_model_name) == (str(default_model), ["mine"])
    assert (args.host, args.block_size, args.kv_cache_memory_bytes) == ("0.0.0.0", 64, None)
    assert args.additional_config["other"] == 1
    assert args.additional_config[CONFIG_KEY]["policy"] == "paper"
    assert args.additional_config[CONFIG_KEY]["recovery"] == 0.8


@pytest.mark.parametrize("off", [["--fastgen", "off"], ["--no-fastgen"], ["--fastgen=off"]])
def test_off_is_plain_vllm(off: list[str], default_model: Path) -> None:
    arguments = [str(default_model), "--host", "localhost"]
    assert engine_args(cli.prepare([*arguments, *off])) == engine_args(stock(arguments))


@pytest.mark.parametrize(
    ("arguments", "seconds"), [([], 30), (["--shutdown-timeout", "0"], 0), (["--no-fastgen"], 0)]
)
def test_running_requests_may_finish(
    arguments: list[str], seconds: int, default_model: Path
) -> None:
    assert cli.prepare([str(default_model), *arguments]).shutdown_timeout == seconds


def test_off_in_vllms_config_file(default_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"model: {default_model}\nfastgen: off\nport: 9000\n")
    args = cli.prepare(["--config", str(file)])
    assert (args.model, args.port, args.worker_cls) == (str(default_model), 9000, "auto")


@pytest.mark.parametrize(
    ("text", "name", "recovery"),
    [
        ("fastgen: on", "balanced", 0.9),
        ("fastgen: on\nport: 9000", "balanced", 0.9),
        ("", "balanced", 0.9),
        ("# nothing yet", "balanced", 0.9),
        ("fastgen:\n  recovery: 0.8", "balanced (changed)", 0.8),
        ("fastgen: {preset: paper, recovery: 0.8}", "paper (changed)", 0.8),
    ],
)
@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_vllms_config_file_as_people_write_yaml(
    form: str, text: str, name: str, recovery: float, default_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    args = cli._parse([*form.format(file).split(), str(default_model)])
    assert args.model == str(default_model)
    config = resolve_config(args.fastgen, args.additional_config)
    assert config is not None
    assert (config.name, config.recovery) == (name, recovery)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- fastgen", "it must hold 'option: value' lines"),
        ("fastgen: {", "not valid YAML"),
        ("fastgen: {recover: 0.9}", "recover=0.9"),
    ],
)
def test_mistakes_in_vllms_config_file(
    text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    assert problem in error_of(capsys, "--config", str(file))


def test_two_config_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.touch()
    assert "--config is given twice" in error_of(capsys, "--config", str(file), f"--config={file}")


def test_single_options_on_the_command_line(default_model: Path) -> None:
    flags = ["--fastgen", "paper", "--fastgen.recovery", "0.8", "--fastgen.paper.local", "0.2"]
    args = cli._parse([str(default_model), *flags])
    config = resolve_config(args.fastgen)
    assert config is not None
    assert (config.policy, config.recovery, config.paper.local) == ("paper", 0.8, 0.2)


def test_compiled_code_needs_a_folder(
    default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(file))
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    arguments = [str(default_model), "--max-model-len", "1024"]
    problem = f"compiled code in {file}/torch_compile_cache: Not a directory.*--enforce-eager"
    with pytest.raises(OSError, match=problem):
        cli.prepare(arguments)
    assert cli.prepare([*arguments, "--enforce-eager"]).enforce_eager


@pytest.mark.parametrize(
    ("arguments", "pool"),
    [
        (["--kv-cache-memory-bytes", "2G"], 2**31),
        (["--gpu-memory-utilization", "0.5"], None),
        (["--gpu-memory-utilization", "0.92"], None),
    ],
)
def test_pool_of_the_default_model(
    arguments: list[str], pool: int | None, default_model: Path
) -> None:
    assert cli.prepare(["--fastgen", "off", *arguments]).kv_cache_memory_bytes == pool


def test_offline_options() -> None:
    options = fastgen_vllm.llm_options("paper", max_model_len=2048)
    assert options["max_model_len"] == 2048
    assert options["additional_config"][CONFIG_KEY]["policy"] == "paper"
    assert fastgen_vllm.llm_options("off", max_model_len=2048) == {"max_model_len": 2048}
    with pytest.raises(ValueError, match="--worker-cls"):
        fastgen_vllm.llm_options(worker_cls="a.B")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody chose how to compile; put back in the end."""
    for name in (COMPILER_VARIABLE, COMPILED_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("fastgen", ["balanced", "off"])
def test_later_starts_find_what_the_first_compiled(
    fastgen: str, compiler: pytest.MonkeyPatch, default_model: Path, tmp_path: Path
) -> None:
    compiler.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    compiler.setenv(COMPILED_VARIABLE, default_cache_dir())  # as importing vLLM leaves it
    cli.prepare([str(default_model), "--fastgen", fastgen])
    assert os.environ[COMPILER_VARIABLE] == "0"
    assert os.environ[COMPILED_VARIABLE] == f"{tmp_path}/torch_compile_cache/inductor"


def test_a_cache_that_cannot_be_written_is_no_place(
    compiler: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PyTorch makes the folder when it is imported, in every process."""
    file = tmp_path / "file"
    file.touch()
    compiler.setenv("VLLM_CACHE_ROOT", str(file))
    compiler.setenv(COMPILED_VARIABLE, default_cache_dir())
    keep_compiled()
    assert os.environ[COMPILED_VARIABLE] == default_cache_dir()


def test_offline_too_unless_off(compiler: pytest.MonkeyPatch) -> None:
    fastgen_vllm.llm_options("off")
    assert COMPILER_VARIABLE not in os.environ and COMPILED_VARIABLE not in os.environ
    fastgen_vllm.llm_options()
    assert os.environ[COMPILER_VARIABLE] == "0" and COMPILED_VARIABLE in os.environ


def test_a_choice_of_compiler_stays(compiler: pytest.MonkeyPatch) -> None:
    compiler.setenv(COMPILER_VARIABLE, "1")
    compiler.setenv(COMPILED_VARIABLE, "/mine")
    keep_compiled()
    assert (os.environ[COMPILER_VARIABLE], os.environ[COMPILED_VARIABLE]) == ("1", "/mine")


def stock(arguments: list[str]) -> argparse.Namespace:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args: argparse.Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    args.model = args.model_tag or args.model
    return args


def engine_args(args: argparse.Namespace) -> dict[str, Any]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return vars(AsyncEngineArgs.from_cli_args(args)) | {"logging_config": None}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ev"], {"eval"}),
        (["completion", ""], {"bash", "zsh"}),
        (["serve", "--fastg"], {"--fastgen"}),
        (["serve", "--max-model-l"], {"--max-model-len"}),
        (["eval", "--retrieval-l"], {"--retrieval-lengths"}),
    ],
)
def test_completion_completes(bash_script: Path, words: list[str], expected: set[str]) -> None:
    line = shlex.join(["fastgen-vllm", *words[:-1]])
    program = f"""
        source {shlex.quote(str(bash_script))}
        COMP_WORDS=({line} {shlex.quote(words[-1])}) COMP_CWORD={len(words)}
        _shtab_fastgen_vllm
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "fastgen-vllm"
    path.write_text(script("bash"))
    return path


def test_completion_is_printed(capsys: pytest.CaptureFixture[str], bash_script: Path) -> None:
    assert cli.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == bash_script.read_text() + "\n"
    with pytest.raises(SystemExit, match="2"):
        cli.main(["completion", "fish"])
    assert "bash, zsh" in capsys.readouterr().err.replace("'", "")
