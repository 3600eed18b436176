"""Random LCKV models, and what they say by definition: no code of the engine's."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastgen_vllm.models.lckv.config import LCKVLlamaConfig

VOCAB = 512


def save_lckv(directory: Path, layer_types: str, **options: object) -> Path:
    """A random model in the published layout: layers that read others have no k and v."""
    layers = layer_types.split("_")
    config = LCKVLlamaConfig(
        layer_types=layer_types,
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=len(layers),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LCKVLlamaForCausalLM"],
        **options,
    )
    config.save_pretrained(directory)
    random = torch.Generator().manual_seed(len(layer_types))
    shapes = {"model.embed_tokens.weight": (VOCAB, 128), "lm_head.weight": (VOCAB, 128)}
    for layer, source in enumerate(layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (128, 128)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (128, 128)
        if source.rstrip("s") == str(layer):
            shapes[f"{prefix}.self_attn.k_proj.weight"] = (64, 128)
            shapes[f"{prefix}.self_attn.v_proj.weight"] = (64, 128)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (192, 128)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (192, 128)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (128, 192)
    weights = {name: torch.randn(shape, generator=random) * 0.12 for name, shape in shapes.items()}
    norms = ["model.norm.weight"]
    for layer in range(len(layers)):
        for name in ("input_layernorm", "post_attention_layernorm"):
            norms.append(f"model.layers.{layer}.{name}.weight")
    weights |= {name: torch.rand(128, generator=random) + 0.5 for name in norms}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@dataclass
class Definition:
    """A model in PyTorch, float64, one request."""

    weights: dict[str, Tensor]
    config: LCKVLlamaConfig
    sources: list[int] = field(init=False)
    windows: list[int | None] = field(init=False)

    def __post_init__(self) -> None:
        entries = self.config.kv_layers.split("_")
        self.sources = [int(entry.rstrip("s")) for entry in entries]
        window = self.config.lckv_window
        self.windows = [window if entry.endswith("s") else None for entry in entries]
        self.weights = {name: w.double() for name, w in self.weights.items()}

    def sequential(self, tokens: list[int]) -> Tensor:
        """Logits [T, V], one token after another: a token reads what earlier tokens left."""
        kept: dict[int, list[tuple[Tensor, Tensor]]] = {s: [] for s in set(self.sources)}
        logits = []
        for position, token in enumerate(tokens):
            x = self.weights["model.embed_tokens.weight"][token][None]
            for layer, source in enumerate(self.sources):
                h = self._norm(x, layer, "input_layernorm")
                if source == layer:
                    kept[layer].append(self._key_value(h, layer, torch.tensor([position])))
                seen = kept[source][:position] if self._strict(layer) else kept[source]
                seen = seen[-(self.windows[layer] or len(seen)) :]
                attended = torch.zeros(1, 4, 32, dtype=torch.float64)
                if seen:
                    keys, values = (torch.cat([pair[i] for pair in seen]) for i in (0, 1))
                    query = self._query(h, layer, torch.tensor([position]))
                    attended = self._attend(query, keys, values, None)
                x = self._finish(x, attended, layer)
            logits.append(self._logits(x))
        return torch.cat(logits)

    def by_passes(self, chunks: list[list[int]], passes: int) -> Tensor:
        """Logits [T, V], chunk by chunk, the cycle as often as a chunk has tokens, or `passes`."""
        num_tokens = sum(map(len, chunks))
        shape = (num_tokens, 2, 32)
        keys = {s: torch.zeros(shape, dtype=torch.float64) for s in set(self.sources)}
        values = {s: torch.zeros(shape, dtype=torch.float64) for s in set(self.sources)}
        layers = range(len(self.sources))
        up = [layer for layer in layers if self.sources[layer] > layer]
        first, last = (up[0], max(self.sources[i] for i in up)) if up else (len(layers), -1)
        logits, begin = [], 0
        for chunk in chunks:
            position = torch.arange(begin, begin + len(chunk))
            x = self.weights["model.embed_tokens.weight"][torch.tensor(chunk)]

            def run(x: Tensor, some: range, position: Tensor = position) -> Tensor:
                for layer in some:
                    h = self._norm(x, layer, "input_layernorm")
                    source = self.sources[layer]
                    if source == layer:
                        k, v = self._key_value(h, layer, position)
                        keys[layer][position], values[layer][position] = k, v
                    seen = torch.arange(int(position[-1]) + 1)
                    mask = seen[None] <= position[:, None] - self._strict(layer)
                    if self.windows[layer] is not None:
                        oldest = position[:, None] - self._strict(layer) - self.windows[layer]
                        mask &= seen[None] > oldest
                    query = self._query(h, layer, position)
                    attended = self._attend(query, keys[source][seen], values[source][seen], mask)
                    x = self._finish(x, attended, layer)
                return x

            x = run(x, range(min(first, len(layers))))
            if up:
                entry = x
                for _ in range(min(len(chunk), passes)):
                    x = run(entry, range(first, last + 1))
                x = run(x, range(last + 1, len(layers)))
            logits.append(self._logits(x))
            begin += len(chunk)
        return torch.cat(logits)

    def _strict(self, layer: int) -> int:
        """Tokens that a token sees less than ordinarily: itself, or none."""
        return int(self.sources[layer] > layer or self.config.force_nodiag)

    def _norm(self, x: Tensor, layer: int | None, name: str) -> Tensor:
        prefix = "model" if layer is None else f"model.layers.{layer}"
        mean = x.square().mean(-1, keepdim=True)
        scale = self.weights[f"{prefix}.{name}.weight"]
        return x * torch.rsqrt(mean + self.config.rms_norm_eps) * scale

    def _project(self, h: Tensor, layer: int, name: str) -> Tensor:
        result = h @ self.weights[f"model.layers.{layer}.self_attn.{name}.weight"].T
        return result.view(len(h), -1, 32)

    def _query(self, h: Tensor, layer: int, position: Tensor) -> Tensor:
        return self._rotate(self._project(h, layer, "q_proj"), position)

    def _key_value(self, h: Tensor, layer: int, position: Tensor) -> tuple[Tensor, Tensor]:
        key = self._rotate(self._project(h, layer, "k_proj"), position)
        return key, self._project(h, layer, "v_proj")

    @staticmethod
    def _rotate(x: Tensor, position: Tensor) -> Tensor:
        frequency = 10000.0 ** -(torch.arange(16, dtype=torch.float64) / 16)
        angle = (position[:, None].double() * frequency)[:, None]
        low, high = x.chunk(2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    @staticmethod
    def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        keys, values = (t.repeat_interleave(2, 1) for t in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query, keys) / math.sqrt(32)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        probability = scores.softmax(-1).nan_to_num(0.0)  # rows that see nothing
        return torch.einsum("hqk,khd->qhd", probability, values)

    def _finish(self, x: Tensor, attended: Tensor, layer: int) -> Tensor:
        prefix = f"model.layers.{layer}"
        x = x + attended.flatten(1) @ self.weights[f"{prefix}.self_attn.o_proj.weight"].T
        h = self._norm(x, layer, "post_attention_layernorm")
        gate = torch.nn.functional.silu(h @ self.weights[f"{prefix}.mlp.gate_proj.weight"].T)
        up = h @ self.weights[f"{prefix}.mlp.up_proj.weight"].T
        return x + (gate * up) @ self.weights[f"{prefix}.mlp.down_proj.weight"].T

    def _logits(self, x: Tensor) -> Tensor:
        return self._norm(x, None, "norm") @ self.weights["lm_head.weight"].T
