"""A Hugging Face model over explicit keys and values per head, in plain PyTorch.

It shares nothing with the engine: no kernel, no page, no policy. Other libraries' methods are
measured with it, and the engine's own divergence is checked against it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache
from transformers.masking_utils import AttentionMaskInterface

_KEPT_ATTENTION = "fastgen_kept"


@dataclass(frozen=True)
class Head:
    """What one KV head still holds of a prompt; keys carry their rotary embedding."""

    keys: Tensor  # [n, D]
    values: Tensor  # [n, D]


@dataclass(frozen=True)
class LayerCall:
    """One attention layer's arguments and results during a prefill."""

    module: torch.nn.Module
    arguments: dict[str, Any]  # as transformers passed them; the cache is complete
    keys: Tensor  # [1, H, N, D]
    values: Tensor  # [1, H, N, D]


@dataclass(frozen=True)
class Prefill:
    """A prompt that has passed the model."""

    num_tokens: int
    layers: list[LayerCall]
    last: Tensor  # [V] float32, log-probabilities of the first new token

    def heads(self, keep: Tensor | None = None) -> list[list[Head]]:
        """Return what every head holds, ``[L][H]``.

        Args:
            keep: [L, H, N] bool, kept tokens; None keeps all.
        """
        held = []
        for number, layer in enumerate(self.layers):
            pairs = zip(layer.keys[0], layer.values[0], strict=True)
            held.append(
                [
                    Head(keys, values)
                    if keep is None
                    else Head(keys[keep[number, head]], values[keep[number, head]])
                    for head, (keys, values) in enumerate(pairs)
                ]
            )
        return held


class DenseModel:
    """A causal language model of transformers.

    Args:
        model: directory or hub name.
        dtype: of weights and arithmetic.
    """

    def __init__(self, model: Path | str, dtype: torch.dtype = torch.float32) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation="sdpa"
        ).eval()

    @torch.no_grad()
    def prefill(self, prompt: list[int]) -> Prefill:
        """Run a prompt and keep what every attention layer saw."""
        layers: list[LayerCall] = []

        def remember(module: Any, _args: Any, arguments: Any, _output: Any) -> None:
            cache = arguments["past_key_values"].layers[module.layer_idx]
            layers.append(LayerCall(module, arguments, cache.keys, cache.values))

        attention = [layer.self_attn for layer in self.model.model.layers]
        hooks = [a.register_forward_hook(remember, with_kwargs=True) for a in attention]
        try:
            output = self.model(
                torch.tensor([prompt]),
                past_key_values=DynamicCache(),
                cache_position=torch.arange(len(prompt)),
                logits_to_keep=1,
            )
        finally:
            for hook in hooks:
                hook.remove()
        return Prefill(len(prompt), layers, output.logits[0, -1].float().log_softmax(-1))

    @torch.no_grad()
    def follow(self, prefill: Prefill, heads: list[list[Head]], tokens: list[int]) -> Tensor:
        """Return [T, V] float32 log-probabilities before each of ``T`` forced tokens.

        The first row comes from the prefill itself, as in serving: nothing is compressed yet.
        Forced tokens are kept by every head.
        """
        if len(tokens) == 1:
            return prefill.last[None]
        end = prefill.num_tokens + len(tokens) - 1
        self.model.set_attn_implementation(_KEPT_ATTENTION)
        try:
            output = self.model(
                torch.tensor([tokens[:-1]]),
                position_ids=torch.arange(prefill.num_tokens, end)[None],
                use_cache=False,
                kept_heads=heads,
            )
        finally:
            self.model.set_attn_implementation("sdpa")
        return torch.cat([prefill.last[None], output.logits[0].float().log_softmax(-1)])


def _attend_to_kept(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    *,
    scaling: float,
    kept_heads: list[list[Head]],
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attention of ``T`` new tokens to every head's kept ones and, causally, to each other.

    Args:
        query: [1, H*G, T, D].
        key, value: [1, H, T, D].
    """
    heads = kept_heads[module.layer_idx]
    grouped = query[0].view(len(heads), -1, *query.shape[2:])
    new = query.shape[2]
    outputs = []
    for held, q, k, v in zip(heads, grouped, key[0], value[0], strict=True):
        visible = torch.ones(new, len(held.keys) + new, dtype=torch.bool).tril(len(held.keys))
        keys = torch.cat([held.keys, k]).expand(len(q), -1, -1)
        values = torch.cat([held.values, v]).expand(len(q), -1, -1)
        outputs.append(
            scaled_dot_product_attention(q, keys, values, attn_mask=visible, scale=scaling)
        )
    return torch.cat(outputs).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(_KEPT_ATTENTION, _attend_to_kept)
AttentionMaskInterface.register(_KEPT_ATTENTION, lambda *args, **kwargs: None)
