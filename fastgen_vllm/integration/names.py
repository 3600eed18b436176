"""The vLLM names that we override or call inside vLLM, with the parameters we count on.

Checked when a worker starts. If vLLM changed one of them, starting fails with the whole list
instead of serving wrong output.
"""

import inspect
from importlib import import_module

#: "module:qualified.name" -> parameters that must be there, on any device
COMMON_NAMES: dict[str, tuple[str, ...]] = {
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": ("throttle_prefills",),
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": (
        "scheduler_output",
        "model_runner_output",
    ),
    "vllm.v1.core.sched.scheduler:Scheduler.add_request": ("request",),
    "vllm.v1.core.sched.scheduler:Scheduler.make_stats": (),
    "vllm.v1.core.sched.scheduler:Scheduler._get_local_prefix_cache_hit": ("request",),
    "vllm.v1.core.sched.scheduler:Scheduler._preempt_request": ("request",),
    "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead": (
        "request",
        "num_computed_tokens",
        "num_new_tokens",
    ),
    "vllm.v1.core.sched.scheduler:Scheduler._free_request": ("request", "delay_free_blocks"),
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler": (),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.truncate_computed_blocks": (
        "blocks",
        "num_computed_tokens",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.get_num_blocks_to_allocate": (
        "request_id",
        "num_tokens",
        "new_computed_blocks",
        "total_computed_tokens",
        "num_local_computed_tokens",
        "num_tokens_main_model",
        "apply_admission_cap",
        "prefill_end",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.allocate_new_blocks": (
        "request_id",
        "num_tokens",
        "num_tokens_main_model",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.cache_blocks": (
        "request",
        "num_tokens",
        "retention_interval",
        "replay_boundaries",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.pop_blocks_for_free": (
        "request_id",
    ),
    "vllm.v1.core.block_pool:BlockPool.get_new_blocks": ("num_blocks",),
    "vllm.v1.core.block_pool:BlockPool.free_blocks": ("ordered_blocks",),
    "vllm.v1.core.block_pool:BlockPool.get_num_free_blocks": (),
    "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry._ensure_registered": (),
    "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry.register": (
        "kvcache_spec_cls",
        "manager_class",
        "uniform_type_base_spec",
    ),
    "vllm.v1.attention.backends.registry:register_backend": ("backend", "class_path"),
    "vllm.v1.worker.block_table:MultiGroupBlockTable.add_row": ("block_ids", "row_idx"),
}

#: device type -> names that are overridden or called on that device only
DEVICE_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "vllm.model_executor.layers.attention.attention:get_attention_context": ("layer_name",),
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build": (
            "common_prefix_len",
            "common_attn_metadata",
            "fast_build",
        ),
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder._set_isa_to_layers": (
            "layer_names",
        ),
        "vllm.v1.attention.backends.cpu_attn:_get_attn_isa": ("dtype", "block_size", "head_size"),
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.forward": (
            "layer",
            "query",
            "key",
            "value",
            "kv_cache",
            "attn_metadata",
            "output",
        ),
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.do_kv_cache_update": (
            "layer",
            "key",
            "value",
            "kv_cache",
            "slot_mapping",
        ),
        "vllm.v1.worker.cpu_worker:CPUWorker.get_kv_cache_spec": (),
        "vllm.v1.worker.cpu_worker:CPUWorker.initialize_from_config": ("kv_cache_config",),
        "vllm.v1.worker.cpu_worker:CPUWorker.execute_model": ("scheduler_output",),
        "vllm.v1.worker.cpu_worker:CPUWorker.sample_tokens": ("grammar_output",),
        "vllm._custom_ops:cpu_attn_get_scheduler_metadata": ("seq_lens", "isa"),
        "vllm._custom_ops:cpu_attention_with_kv_cache": ("seq_lens", "block_table"),
    },
    "cuda": {
        "vllm.v1.attention.backends.flash_attn:FlashAttentionMetadataBuilder.build": (
            "common_prefix_len",
            "common_attn_metadata",
            "fast_build",
        ),
        "vllm.v1.attention.backends.flash_attn:FlashAttentionMetadataBuilder"
        ".get_cudagraph_support": ("vllm_config", "kv_cache_spec"),
        "vllm.v1.attention.backends.flash_attn:FlashAttentionBackend"
        ".supported_kv_cache_layouts": (),
        "vllm.v1.attention.backends.flash_attn:FlashAttentionImpl.forward": (
            "layer",
            "query",
            "key",
            "value",
            "kv_cache",
            "attn_metadata",
            "output",
        ),
        "vllm.v1.attention.backends.fa_utils:flash_attn_varlen_func": ("seqused_k", "block_table"),
        "vllm.v1.attention.backends.fa_utils:get_flash_attn_version": ("head_size",),
        "vllm.v1.worker.gpu_worker:Worker.get_kv_cache_spec": (),
        "vllm.v1.worker.gpu_worker:Worker.determine_available_memory": (),
        "vllm.v1.worker.gpu_worker:Worker.initialize_from_config": ("kv_cache_config",),
        "vllm.v1.worker.gpu_worker:Worker.execute_model": ("scheduler_output",),
    },
}


def check_vllm_names(device_type: str) -> None:
    """Raise ImportError that lists every vLLM name or parameter that is missing."""
    names = COMMON_NAMES | DEVICE_NAMES.get(device_type, {})
    missing = [problem for name in names if (problem := _problem(name, names[name]))]
    if missing:
        raise ImportError(
            "this vLLM is not the one FastGen was built for (0.32). Missing: "
            + "; ".join(missing)
            + ". Install the pinned vLLM, or start with --fastgen off."
        )


def _problem(name: str, needed: tuple[str, ...]) -> str | None:
    module, _, path = name.partition(":")
    try:
        target: object = import_module(module)
        for part in path.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError):
        return name
    assert callable(target)
    parameters = inspect.signature(target).parameters
    absent = [parameter for parameter in needed if parameter not in parameters]
    return f"{name} parameters {', '.join(absent)}" if absent else None
