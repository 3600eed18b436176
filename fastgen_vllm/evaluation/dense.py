"""A Hugging Face model over explicit keys and values per head, in plain PyTorch.

It shares nothing with the engine: no kernel, no page, no policy. Other libraries' methods are
measured with it, and the engine's own divergence is checked against it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.llama.modeling_llama import rotate_half

from fastgen_vllm.evaluation.texts import Forced

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

    def queries(self, last: int) -> Tensor:
        """Return [H, G, last, D] queries of the prompt's last tokens, with rotary embedding."""
        module: Any = self.module
        hidden = self.arguments["hidden_states"][0, -last:]
        queries = module.q_proj(hidden).view(last, -1, self.keys.shape[-1])
        if hasattr(module, "q_norm"):
            queries = module.q_norm(queries)
        cos, sin = (part[0, -last:] for part in self.arguments["position_embeddings"])
        queries = queries.transpose(0, 1)  # [H*G, last, D]
        queries = queries * cos + rotate_half(queries) * sin
        grouped: Tensor = queries.view(self.keys.shape[1], -1, *queries.shape[1:])
        return grouped

    def output_weights(self) -> Tensor:
        """Return [H, G, D, E]: what a value of each query head adds to the layer's output."""
        weight: Tensor = self.module.o_proj.weight  # type: ignore[union-attr, assignment]
        _, heads, _, size = self.keys.shape
        return weight.T.view(heads, -1, size, weight.shape[0])


#: Called with a layer's and a KV head's number, and [G, T, n] attention to the kept tokens.
Watch = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Prefill:
    """A prompt that has passed the model."""

    tokens: list[int]
    layers: list[LayerCall]
    last: Tensor  # [V] float32, log-probabilities of the first new token

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.tokens)

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
        return Prefill(prompt, layers, output.logits[0, -1].float().log_softmax(-1))

    def follow(self, prefill: Prefill, heads: list[list[Head]], tokens: list[int]) -> Tensor:
        """Return [T, V] float32 log-probabilities before each of ``T`` forced tokens.

        The first row comes from the prefill itself, as in serving: nothing is compressed yet.
        Forced tokens are kept by every head.
        """
        return self.follow_each(prefill, heads, [Forced(tokens, len(tokens))])[0]

    @torch.no_grad()
    def follow_each(
        self, prefill: Prefill, heads: list[list[Head]], texts: Sequence[Forced]
    ) -> list[Tensor]:
        """Return [num_scored, V] float32 log-probabilities of each text, as :meth:`follow` would.

        Every text follows the prompt on a copy of its own, all in one pass.
        """
        inputs = [text.tokens[:-1] for text in texts]
        rows: list[Tensor] = []
        if any(inputs):
            wanted: list[int] = []
            begin = 0
            for text, tokens in zip(texts, inputs, strict=True):
                begin += len(tokens)
                wanted += range(begin - min(text.num_scored, len(tokens)), begin)
            hidden = self._pass(prefill, heads, inputs, None)[wanted]
            rows = list(self.model.lm_head(hidden).float().log_softmax(-1))
        said = []
        for text, tokens in zip(texts, inputs, strict=True):
            mine = [rows.pop(0) for _ in range(min(text.num_scored, len(tokens)))]
            whole = text.num_scored > len(tokens)
            said.append(torch.stack([prefill.last, *mine] if whole else mine))
        return said

    @torch.no_grad()
    def watch(self, prefill: Prefill, tokens: list[int], watch: Watch) -> None:
        """Let tokens follow the uncompressed prompt, only to see what they attend to."""
        self._pass(prefill, prefill.heads(), [tokens], watch)

    def _pass(
        self,
        prefill: Prefill,
        heads: list[list[Head]],
        texts: list[list[int]],
        watch: Watch | None,
    ) -> Tensor:
        """Return [sum of T, E] hidden states; texts share the prompt and do not see each other."""
        owner = torch.tensor([number for number, text in enumerate(texts) for _ in text])
        positions = [prefill.num_tokens + place for text in texts for place in range(len(text))]
        among = (owner[:, None] == owner).tril()
        self.model.set_attn_implementation(_KEPT_ATTENTION)
        try:
            output = self.model.model(
                torch.tensor([[token for text in texts for token in text]]),
                position_ids=torch.tensor([positions]),
                use_cache=False,
                kept_heads=heads,
                among=among,
                watch=watch,
            )
        finally:
            self.model.set_attn_implementation("sdpa")
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


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
    among: Tensor,
    watch: Watch | None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attention of ``T`` new tokens to every head's kept ones and to each other.

    Args:
        query: [1, H*G, T, D].
        key, value: [1, H, T, D].
        among: [T, T] bool, which new tokens each new token sees.
        watch: sees the attention to kept tokens.
    """
    heads = kept_heads[module.layer_idx]
    grouped = query[0].view(len(heads), -1, *query.shape[2:])
    outputs = []
    for number, (held, q, k, v) in enumerate(zip(heads, grouped, key[0], value[0], strict=True)):
        visible = torch.cat([among.new_ones(len(among), len(held.keys)), among], dim=1)
        keys, values = torch.cat([held.keys, k]), torch.cat([held.values, v])
        if watch is not None:
            logits = (q @ keys.T * scaling).masked_fill_(~visible, -torch.inf)
            attention = logits.softmax(-1)
            watch(module.layer_idx, number, attention[..., : len(held.keys)])
            outputs.append(attention @ values)
            continue
        outputs.append(
            scaled_dot_product_attention(
                q,
                keys.expand(len(q), -1, -1),
                values.expand(len(q), -1, -1),
                attn_mask=visible,
                scale=scaling,
            )
        )
    return torch.cat(outputs).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(_KEPT_ATTENTION, _attend_to_kept)
AttentionMaskInterface.register(_KEPT_ATTENTION, lambda *args, **kwargs: None)
