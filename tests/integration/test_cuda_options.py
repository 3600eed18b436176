"""What CUDA needs and refuses, on a configuration that says it is for a GPU."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from fastgen_vllm import ops
from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.integration import options
from fastgen_vllm.integration.options import RUNNER_VARIABLE, check_engine_config, engine_options
from fastgen_vllm.pages import stock_records
from tests.integration.engine import engine_config


@pytest.fixture
def config(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ops, "device_types", lambda: ("cpu", "cuda"))
    monkeypatch.setenv(RUNNER_VARIABLE, "0")
    config = engine_config(tiny_llama, FastGenConfig(), skip_tokenizer_init=True)
    config.device_config.device_type = "cuda"
    config.cache_config.block_size = 16
    return config


def test_what_we_ask_for_is_accepted(config: Any) -> None:
    config.attention_config.backend = AttentionBackendEnum.FLASH_ATTN
    check_engine_config(config)


def set_backend(config: Any) -> None:
    config.attention_config.backend = AttentionBackendEnum.TRITON_ATTN


def set_block_size(config: Any) -> None:
    config.cache_config.block_size = 24


def set_ubatching(config: Any) -> None:
    config.parallel_config.enable_dbo = True


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (set_backend, "--attention-backend"),
        (set_block_size, "--block-size: FastGen on CUDA needs a multiple of 16"),
        (set_ubatching, "--enable-dbo"),
    ],
)
def test_refusals(config: Any, change: Callable[[Any], None], flag: str) -> None:
    change(config)
    with pytest.raises(ValueError, match=flag) as caught:
        check_engine_config(config)
    assert "--fastgen off" in str(caught.value)


def test_the_second_model_runner_is_refused(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER_VARIABLE, "1")
    with pytest.raises(ValueError, match=f"{RUNNER_VARIABLE}.*set it to 0"):
        check_engine_config(config)


def test_kernels_without_cuda_are_refused(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "device_types", lambda: ("cpu",))
    with pytest.raises(ValueError, match=r"built without CUDA.*FASTGEN_CUDA=1"):
        check_engine_config(config)


def test_xformers_is_refused_on_the_cpu(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"decode_kernel='xformers'.*'fastgen' or 'stock'"):
        engine_config(tiny_llama, FastGenConfig(decode_kernel="xformers"), skip_tokenizer_init=True)


def test_xformers_must_be_installed(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config.additional_config = {"fastgen": {"decode_kernel": "xformers"}}
    check_engine_config(config)
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="xformers is not installed; install xformers=="):
        check_engine_config(config)


def test_engine_options_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER_VARIABLE, "")  # to be put back afterwards
    del os.environ[RUNNER_VARIABLE]
    monkeypatch.setattr(options, "current_platform", SimpleNamespace(is_cuda=lambda: True))
    ours = engine_options(FastGenConfig())
    assert ours["worker_cls"] == "fastgen_vllm.integration.cuda.PerHeadCUDAWorker"
    assert ours["attention_backend"] == "FLASH_ATTN"
    assert ours["block_size"] == 16
    assert os.environ[RUNNER_VARIABLE] == "0"


@pytest.mark.skipif("cuda" in ops.device_types(), reason="the CUDA kernels are built")
def test_an_op_that_was_not_built_says_so() -> None:
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    arena, row, norm = torch.zeros(1, 1, 1, 16, 64), torch.zeros(1).int(), torch.zeros(1, 1, 4)
    heads = stock_records(1, 1)
    with pytest.raises(RuntimeError, match=r"without its CUDA kernels.*FASTGEN_CUDA=1"):
        torch.ops.fastgen.value_norm.default.redispatch(key, arena, row, heads, norm)
