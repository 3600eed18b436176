"""LCKV's Llama for vLLM.

A layer that *looks up* attends to K and V of a layer above it, which for the tokens of a step are
not there yet. So a prompt passes the cycle of layers several times, and reads what the pass before
left: as many passes as the step has new tokens of a request give the sequential definition exactly,
``config.passes`` are what the model was trained for. A decode step is one pass. What earlier steps
left is finished, so chunks of a prompt and cached prefixes need nothing else.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import unified_kv_cache_update
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from fastgen_vllm.integration.passes import Passes
from fastgen_vllm.models.lckv.config import LCKVLlamaConfig

#: Hidden states and the residual they are added to, None before the first layer.
State = tuple[Tensor, Tensor | None]


def copied(state: State) -> State:
    """A copy, for layers that add to their input in place."""
    hidden, residual = state
    return hidden.clone(), None if residual is None else residual.clone()


def attention_backend() -> type:
    """The backend that knows strict masks, on this platform."""
    if current_platform.is_cuda():
        from fastgen_vllm.integration.cuda import PerHeadFlashBackend

        return PerHeadFlashBackend
    from fastgen_vllm.integration.cpu import PerHeadCPUBackend

    return PerHeadCPUBackend


class LCKVAttention(nn.Module):
    """Attention over the K and V of this layer or of another one."""

    def __init__(self, vllm_config: VllmConfig, layer: int, prefix: str, passes: Passes) -> None:
        super().__init__()
        config: LCKVLlamaConfig = vllm_config.model_config.hf_config
        types = config.parsed_layers
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        q_size = config.num_attention_heads * self.head_dim
        kv_size = config.num_key_value_heads * self.head_dim
        bias, quant = config.attention_bias, vllm_config.quant_config

        def projection(name: str, size: int) -> ColumnParallelLinear:
            return ColumnParallelLinear(
                config.hidden_size, size, bias=bias, quant_config=quant, prefix=f"{prefix}.{name}"
            )

        self.owns = types.owns(layer)
        self.q_proj = projection("q_proj", q_size)
        if self.owns:
            self.k_proj = projection("k_proj", kv_size)
            self.v_proj = projection("v_proj", kv_size)
        self.o_proj = RowParallelLinear(
            q_size, config.hidden_size, bias=bias, quant_config=quant, prefix=f"{prefix}.o_proj"
        )
        self.rotary_emb = get_rope(
            self.head_dim,
            max_position=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
        )
        source = prefix.replace(f".{layer}.", f".{types.sources[layer]}.")
        self.attn = Attention(
            config.num_attention_heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=config.num_key_value_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            per_layer_sliding_window=config.lckv_window if types.sliding[layer] else None,
            prefix=f"{prefix}.attn",
            kv_sharing_target_layer_name=None if self.owns else f"{source}.attn",
            attn_backend=attention_backend(),
            strict=types.looks_up(layer) or config.force_nodiag,
            passes=passes if layer in types.cycle else None,
        )

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        query, _ = self.q_proj(hidden_states)
        key = value = None
        if self.owns:
            key, _ = self.k_proj(hidden_states)
            value, _ = self.v_proj(hidden_states)
        query, key = self.rotary_emb(positions, query, key)
        output: Tensor = self.o_proj(self.attn(query, key, value))[0]
        return output


class LCKVDecoderLayer(nn.Module):
    """A Llama's decoder layer."""

    def __init__(self, vllm_config: VllmConfig, layer: int, prefix: str, passes: Passes) -> None:
        super().__init__()
        config: LCKVLlamaConfig = vllm_config.model_config.hf_config
        self.self_attn = LCKVAttention(vllm_config, layer, f"{prefix}.self_attn", passes)
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config=vllm_config.quant_config,
            bias=config.mlp_bias,
            prefix=f"{prefix}.mlp",
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class LCKVLlamaModel(nn.Module):
    """The layers, the cycle of which a prompt passes several times."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config: LCKVLlamaConfig = vllm_config.model_config.hf_config
        self.config = config
        self.types = config.parsed_layers
        self.passes = Passes()
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=vllm_config.quant_config
        )
        # vLLM wants the layer whose cache is shared to be there before those that share it.
        built: dict[int, nn.Module] = {}
        for layer in dict.fromkeys((*self.types.owners, *range(config.num_hidden_layers))):
            name = f"{prefix}.layers.{layer}"
            built[layer] = LCKVDecoderLayer(vllm_config, layer, name, self.passes)
        self.layers = nn.ModuleList(built[layer] for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        cycle = self.types.cycle
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        state = self._run(range(cycle.start), positions, (hidden, None))
        if cycle:
            count = self._count_passes()
            if count > 1:
                self._clear_read_layers(len(positions))
            for is_last in self.passes.run(count):
                entry = state if is_last else copied(state)
                result = self._run(cycle, positions, entry)
            state = result
        state = self._run(range(cycle.stop, len(self.layers)), positions, state)
        normed: Tensor = self.norm(*state)[0]
        return normed

    def _run(self, layers: range, positions: Tensor, state: State) -> State:
        for layer in layers:
            state = self.layers[layer](positions, *state)
        return state

    def _attention(self, layer: int) -> Attention:
        attention: Attention = self.get_submodule(f"layers.{layer}.self_attn.attn")
        return attention

    def _count_passes(self) -> int:
        """Passes of this step: enough to be exact, but no more than the model was trained for."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # vLLM measures memory
            return 1
        longest: int = metadata[self._attention(self.types.cycle.start).layer_name].max_query_len
        return max(1, min(longest, self.config.passes))

    def _clear_read_layers(self, num_tokens: int) -> None:
        """Zero K and V of the step's tokens where the first pass reads them."""
        read = {self.types.sources[layer] for layer in self.types.cycle}
        for layer in sorted(read & set(self.types.cycle)):
            attn = self._attention(layer)
            shape = (num_tokens, attn.num_kv_heads, attn.head_size)
            zero = torch.zeros(shape, dtype=attn.dtype, device=self.norm.weight.device)
            unified_kv_cache_update(zero, zero, attn.layer_name)


class LCKVLlamaForCausalLM(nn.Module):
    """``architectures: [LCKVLlamaForCausalLM]``; weights in the published layout."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )
    packed_modules_mapping: ClassVar = {"gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: LCKVLlamaConfig = vllm_config.model_config.hf_config
        if vllm_config.parallel_config.tensor_parallel_size > 1:
            raise ValueError(
                "--tensor-parallel-size: LCKV models need 1; use --data-parallel-size."
            )
        self.config = config
        inner = f"{prefix}.model" if prefix else "model"
        self.model = LCKVLlamaModel(vllm_config, inner)
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.lm_head" if prefix else "lm_head",
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.embed_tokens(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        hidden: Tensor = self.model(input_ids, positions, inputs_embeds)
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loader = AutoWeightsLoader(self)
        loaded: set[str] = loader.load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded
