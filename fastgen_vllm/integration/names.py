"""The vLLM names that we override or call inside vLLM, with the parameters we count on.

Checked when a worker starts. If vLLM changed one of them, starting fails with the whole list
instead of serving wrong output.
"""

import inspect
from importlib import import_module

#: "module:qualified.name" -> parameters that must be there
VLLM_NAMES: dict[str, tuple[str, ...]] = {
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": ("throttle_prefills",),
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": (
        "scheduler_output",
        "model_runner_output",
    ),
    "vllm.v1.core.sched.scheduler:Scheduler.add_request": ("request",),
    "vllm.v1.core.sched.scheduler:Scheduler.make_stats": (),
    "vllm.v1.core.sched.scheduler:Scheduler._get_local_prefix_cache_hit": ("request",),
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
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build": (
        "common_prefix_len",
        "common_attn_metadata",
        "fast_build",
    ),
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder._set_isa_to_layers": (
        "layer_names",
    ),
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
    "vllm.model_executor.layers.attention.attention:get_attention_context": ("layer_name",),
    "vllm.v1.worker.cpu_worker:CPUWorker.get_kv_cache_spec": (),
    "vllm.v1.worker.cpu_worker:CPUWorker.initialize_from_config": ("kv_cache_config",),
    "vllm.v1.worker.cpu_worker:CPUWorker.execute_model": ("scheduler_output",),
    "vllm.v1.worker.block_table:MultiGroupBlockTable.add_row": ("block_ids", "row_idx"),
}


def check_vllm_names() -> None:
    """Raise ImportError that lists every vLLM name or parameter that is missing."""
    missing = [problem for name in VLLM_NAMES if (problem := _problem(name))]
    if missing:
        raise ImportError(
            "this vLLM is not the one FastGen was built for (0.32). Missing: "
            + "; ".join(missing)
            + ". Install the pinned vLLM, or start with --fastgen off."
        )


def _problem(name: str) -> str | None:
    module, _, path = name.partition(":")
    try:
        target: object = import_module(module)
        for part in path.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError):
        return name
    assert callable(target)
    parameters = inspect.signature(target).parameters
    absent = [parameter for parameter in VLLM_NAMES[name] if parameter not in parameters]
    return f"{name} parameters {', '.join(absent)}" if absent else None
