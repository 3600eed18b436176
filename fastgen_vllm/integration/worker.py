"""The worker's side of compaction, on any device."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.utils.torch_utils import PIN_MEMORY
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import _cached_get_attn_backend
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec
from vllm.v1.outputs import AsyncModelRunnerOutput, KVConnectorOutput, ModelRunnerOutput
from vllm.v1.worker.worker_base import WorkerBase

from fastgen_vllm.config import DecodeKernel
from fastgen_vllm.geometry import CacheGeometry
from fastgen_vllm.integration.attention import PerHeadAttention, PerHeadBuilding, StepSource
from fastgen_vllm.integration.cache import PerHeadSpec, describe_cache, is_compressible
from fastgen_vllm.integration.names import check_vllm_names
from fastgen_vllm.integration.options import (
    check_engine_config,
    config_of,
    model_problem,
    unsupported_model,
)
from fastgen_vllm.integration.rotary import rotation_of
from fastgen_vllm.integration.waiting import WaitingAgain
from fastgen_vllm.lifecycle import PROFILE_BYTES, try_policy
from fastgen_vllm.pages.size import cdiv
from fastgen_vllm.profile.observation import Observation, may_replay
from fastgen_vllm.profile.replay import Rotation
from fastgen_vllm.profile.tokens import token_class_table
from fastgen_vllm.request import RequestOptions
from fastgen_vllm.runtime import FastGenRuntime
from fastgen_vllm.runtime.inspection import described, external_id
from fastgen_vllm.runtime.messages import CompactionOrder, StepOrders

# A name below "vllm" so that vLLM's logging configuration applies.
logger = init_logger("vllm.fastgen")


class PerHeadWorking(WorkerBase):
    """Per-head block tables for a vLLM worker that runs the first model runner."""

    #: vLLM's attention backend on this device, and the one that takes its place
    replaced_backend: ClassVar[AttentionBackendEnum]
    backend_class: ClassVar[type]

    @abstractmethod
    def cache_view(self, stacked: torch.Tensor) -> torch.Tensor:
        """The cache as the ops take it, of a cache [L, B, H, S, 2*D]."""

    @abstractmethod
    def decode_kernel(self, name: DecodeKernel, cache: torch.Tensor) -> Callable[..., None]:
        """The op ``decode_attention``, or what stands in for it."""

    @abstractmethod
    def note_memory(self, cache: torch.Tensor) -> str:
        """Prepare the memory of the cache; say for the start-up line what reads it."""

    def working_bytes(self, num_heads: int) -> int:
        """Memory for a moment's work, to be set apart from the pool, for ``L*H`` heads."""
        return 0

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check_vllm_names(vllm_config.device_config.device_type)
        check_engine_config(vllm_config)
        self._fastgen = config_of(vllm_config)
        #: None while the cache is not there yet, or if it cannot be compressed
        self._runtime: FastGenRuntime | None = None
        self._specs: dict[str, PerHeadSpec] = {}
        self._waiting_again = WaitingAgain()
        self._use_backend()
        super().__init__(vllm_config, *args, **kwargs)

    # -- start -----------------------------------------------------------------------

    def _use_backend(self) -> None:
        """Make vLLM build our attention backend where it would build its own.

        In the worker's process only: an installed plugin that is off changes nothing. vLLM
        remembers the class it resolved, so an engine that ran here before is forgotten.
        """
        backend = self.backend_class
        register_backend(self.replaced_backend, f"{backend.__module__}.{backend.__qualname__}")
        _cached_get_attn_backend.cache_clear()

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        specs: dict[str, KVCacheSpec] = super().get_kv_cache_spec()
        problem = model_problem(self.vllm_config) or self._cache_problem(specs)
        if problem is None:
            self._specs = {name: PerHeadSpec.from_full(spec) for name, spec in specs.items()}
            return dict(self._specs)
        if self._fastgen.unsupported == "refuse":
            raise unsupported_model(problem)
        logger.warning("FastGen: %s: every request is served uncompressed.", problem)
        return specs

    def _cache_problem(self, specs: dict[str, KVCacheSpec]) -> str | None:
        dtype = self.model_config.dtype
        if not specs or not all(is_compressible(spec, dtype) for spec in specs.values()):
            kinds = sorted({describe_cache(spec) for spec in specs.values()})
            return f"its KV cache is of kind {', '.join(kinds) or 'none'}"
        if len(set(specs.values())) > 1:
            return "its layers differ in KV heads or head size"
        context = self.vllm_config.compilation_config.static_forward_context
        readers = {name: context[name] for name in specs} | self._sharing_layers()
        for layer in readers.values():
            impl = layer.impl
            if impl.alibi_slopes is not None or impl.sinks is not None or impl.logits_soft_cap:
                return "its attention has ALiBi, sinks or a logits cap"
            if layer.sliding_window is not None:
                return "a layer with a sliding window reads the KV cache of another"
        return None

    def _sharing_layers(self) -> dict[str, Any]:
        """Attention layers that read the KV cache of another, by name."""
        context = self.vllm_config.compilation_config.static_forward_context
        shares = "kv_sharing_target_layer_name"
        return {name: layer for name, layer in context.items() if getattr(layer, shares, None)}

    def determine_available_memory(self) -> int:
        """Bytes for K and V: what vLLM would give them, less what FastGen keeps beside them."""
        available: int = super().determine_available_memory()
        pages = sum(spec.page_size_bytes for spec in self._specs.values())
        if not pages:
            return available
        slots = sum(spec.num_kv_heads * spec.block_size for spec in self._specs.values())
        heads = sum(spec.num_kv_heads for spec in self._specs.values())
        records = FastGenRuntime.record_bytes(heads, self.scheduler_config.max_num_seqs)
        both = pages + slots * FastGenRuntime.SLOT_BYTES
        # A pool of a size that the user chose is all pool; working memory lies beside it.
        measured = self.cache_config.kv_cache_memory_bytes is None
        working = self.working_bytes(heads) if measured else 0
        return int((available - records - working) * pages / both)

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        super().initialize_from_config(kv_cache_config)
        group = kv_cache_config.kv_cache_groups[0]
        if not isinstance(group.kv_cache_spec, PerHeadSpec):
            return
        context = self.vllm_config.compilation_config.static_forward_context
        owners = [name for name in group.layer_names if name in self._specs]
        layers = [context[name] for name in owners]
        stacked = stack_layers([layer.kv_cache for layer in layers])
        num_layers, num_blocks, num_kv_heads, block_size, width = stacked.shape
        geometry = CacheGeometry(
            num_layers=num_layers,
            num_kv_heads=num_kv_heads,
            group_size=layers[0].num_heads // num_kv_heads,
            head_size=width // 2,
            block_size=block_size,
            num_blocks=num_blocks,
        )
        cache = self.cache_view(stacked)
        with cache.device:
            try_policy(self._fastgen, geometry, self.model_config.max_model_len)
        self._runtime = FastGenRuntime(
            self._fastgen,
            geometry,
            cache,
            self._token_class_table(),
            self.scheduler_config.max_num_seqs,
            self.decode_kernel(self._fastgen.decode_kernel, cache),
            PIN_MEMORY,
            self._rotation(cache.device),
        )
        sources = {name: name for name in owners}
        for name, layer in self._sharing_layers().items():
            sources[name] = layer.kv_sharing_target_layer_name
        for name, source in sources.items():
            impl = context[name].impl
            assert isinstance(impl, PerHeadAttention)
            impl.runtime = self._runtime
            impl.layer_index = owners.index(source)
        self._source = StepSource(
            self._runtime,
            request_ids=lambda: self.model_runner.input_batch.req_ids,
            input_ids=lambda: self.model_runner.input_ids.gpu,
        )
        for groups in self.model_runner.attn_groups:
            for attention_group in groups:
                for builder in attention_group.metadata_builders:
                    assert isinstance(builder, PerHeadBuilding)
                    builder.source = self._source
        self._log_start(geometry, self._runtime, self.note_memory(cache))

    def _rotation(self, device: torch.device) -> Rotation | None:
        """How the model's queries are turned, if they are to be replayed."""
        if not may_replay(self._fastgen):
            return None
        try:
            return rotation_of(self.model_runner.get_model(), device)
        except ValueError as error:
            raise ValueError(
                f"fastgen option observe='replay': not possible here, {error}. Use observe: 256."
            ) from error

    def _token_class_table(self) -> torch.Tensor:
        vocab_size = self.model_config.get_vocab_size()
        if self.model_config.skip_tokenizer_init:
            logger.warning("FastGen: without a tokenizer no token is special or punctuation.")
            return torch.zeros(vocab_size, dtype=torch.int32)
        tokenizer = cached_tokenizer_from_config(self.model_config)
        template = str(getattr(tokenizer, "chat_template", None) or "")
        markers = [
            token_id for text, token_id in tokenizer.get_added_vocab().items() if text in template
        ]
        known = min(vocab_size, len(tokenizer))
        texts = [tokenizer.decode([token_id]) for token_id in range(known)]
        texts += [""] * (vocab_size - known)
        return token_class_table(texts, [*tokenizer.all_special_ids, *markers])

    def _log_start(self, geometry: CacheGeometry, runtime: FastGenRuntime, kernels: str) -> None:
        config = self._fastgen
        heads = geometry.pages_per_block
        goal = f"recovery {config.recovery:.3g}"
        if config.keep_tokens is not None:
            goal = f"keep {config.keep_tokens} tokens"
        elif config.keep is not None:
            goal = f"keep {config.keep:.3g}"
        logger.info(
            "FastGen is on: preset %s, policy %s, %s, compacting %s, observed queries %s, "
            "pool %s, kernels %s, decode kernel %s, page %d slots, "
            "KV pool %d blocks = %d pages, of its memory %.1f MiB for slot "
            "metadata; choosing for a prompt takes up to %.0f MiB for a moment",
            config.name,
            config.policy,
            goal,
            "when room is short" if config.when == "short" and not config.force else "always",
            Observation.of(config, RequestOptions(), self.model_config.max_model_len),
            config.pool,
            kernels,
            config.decode_kernel,
            geometry.block_size,
            geometry.num_blocks,
            geometry.num_pages,
            runtime.metadata_bytes / 2**20,
            PROFILE_BYTES * heads * self.model_config.max_model_len / 2**20,
        )

    # -- every step ------------------------------------------------------------------

    def execute_model(
        self, scheduler_output: SchedulerOutput
    ) -> ModelRunnerOutput | AsyncModelRunnerOutput | None:
        self._waiting_again.note(scheduler_output)
        runtime = self._runtime
        if runtime is None:
            return super().execute_model(scheduler_output)
        self._carry_out(scheduler_output, runtime)
        self._source.start_step()
        output = super().execute_model(scheduler_output)
        if output is not None:  # no token was computed: what there is to report waits for one
            return output
        if (report := runtime.finish_step()) is not None:
            # sample_tokens() takes it from here into the step's ModelRunnerOutput.
            self.model_runner.kv_connector_output = KVConnectorOutput(
                kv_connector_worker_meta=report
            )
        return None

    def _carry_out(self, step: SchedulerOutput, runtime: FastGenRuntime) -> None:
        """Do what the step's message says, before vLLM sees it."""
        orders = step.kv_connector_metadata
        assert isinstance(orders, StepOrders)
        for order in orders.compactions:
            runtime.compact(order)
            self._replace_row(order)
        for request_id in (*step.finished_req_ids, *orders.declined):
            runtime.release(request_id)
        for request_id in step.preempted_req_ids or ():
            runtime.restart(request_id)
        for new in step.scheduled_new_reqs:
            if new.req_id in orders.profiled:
                assert new.prompt_token_ids is not None and new.sampling_params is not None
                options = RequestOptions.parse(new.sampling_params.extra_args)
                runtime.track(new.req_id, new.prompt_token_ids, options)
        for request_id, end in orders.ends.items():
            runtime.end_prompt(request_id, end)

    def _replace_row(self, order: CompactionOrder) -> None:
        """Give a request its new block row; blocks that the step adds are appended by vLLM."""
        runner = self.model_runner
        runner.requests[order.request_id].block_ids = (list(order.new_row),)
        row = runner.input_batch.req_id_to_index.get(order.request_id)
        if row is not None:
            runner.input_batch.block_table.add_row((order.new_row,), row)

    # -- what people may look at, by collective_rpc ------------------------------------

    def fastgen_heads(self) -> dict[str, Any] | None:
        """Heads over all prompts planned so far; None if nothing can be compressed."""
        return None if self._runtime is None else self._runtime.head_totals.to_dict()

    def fastgen_requests(self) -> list[dict[str, Any]]:
        """Requests that are running now, with a part in the last step or without."""
        return [
            self._describe(request_id, state)
            for request_id, state in self.model_runner.requests.items()
            if request_id not in self._waiting_again
        ]

    def _describe(self, request_id: str, state: Any) -> dict[str, Any]:
        runtime = self._runtime
        planned = None if runtime is None else runtime.planned(request_id)
        is_compacted = runtime is not None and runtime.is_compacted(request_id)
        stored = int(state.num_computed_tokens)
        return {
            "id": external_id(request_id),
            "prompt_tokens": int(state.num_prompt_tokens),
            "stored_tokens": stored,
            "blocks": len(state.block_ids[0]),
            "blocks_shared": planned.size.stock_blocks if planned and is_compacted else 0,
            "blocks_uncompressed": cdiv(stored, self.cache_config.block_size),
            "compacted": is_compacted,
            "kept_share": None if planned is None else planned.kept_share,
            "policies": {} if planned is None else dict(planned.heads_by_policy),
        }

    def fastgen_expect(self, request_id: str) -> None:
        """Describe the plan of a request to come; `fastgen_take` must follow."""
        if self._runtime is not None:
            self._runtime.expected_plans.expect(request_id)

    def fastgen_take(self, request_id: str) -> dict[str, Any] | None:
        """The plan that was expected, if it was made."""
        plan = None if self._runtime is None else self._runtime.expected_plans.take(request_id)
        return None if plan is None else described(plan)


def stack_layers(layer_caches: list[torch.Tensor]) -> torch.Tensor:
    """Return all layers' KV cache as one view [L, B, H, S, 2*D].

    Args:
        layer_caches: L tensors [B, H, S, 2*D] in one allocation, evenly spaced.
    """
    first = layer_caches[0]
    offsets = [cache.storage_offset() for cache in layer_caches]
    spacing = offsets[1] - offsets[0] if len(offsets) > 1 else first.numel()
    for index, cache in enumerate(layer_caches):
        assert cache.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        assert cache.stride() == first.stride() and cache.shape == first.shape
        assert offsets[index] == offsets[0] + index * spacing, "layers are not evenly spaced"
    return first.as_strided(
        (len(layer_caches), *first.shape), (spacing, *first.stride()), offsets[0]
    )
