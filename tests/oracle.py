"""A plain decoder: dense attention over explicit lists of tokens, one head at a time.

Written from the definitions, slowly, sharing no code with the engine's kernels: what
compaction and the decode rules must equal. Llama and Qwen2 families.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.profile.replay import BLOCK, LAST


def pooled(of_query_heads: Tensor, pool: str) -> Tensor:
    """Reduce the first dimension, query heads of one KV head."""
    if pool == "mean":
        return of_query_heads.mean(0)
    return of_query_heads.amax(0) if pool == "max" else of_query_heads.amin(0)


@dataclass
class Slot:
    """One kept token of one head."""

    position: int
    key: Tensor
    value: Tensor
    mass: float  # accumulated attention, or its squares; inf = protected


@dataclass
class Head:
    """One KV head of one layer: what it keeps and how it stores."""

    slots: list[Slot] = field(default_factory=list)
    pages: int | None = None  # None: everything is kept
    page_slots: int = 0
    growth_period: int = 0  # pages' worth of tokens that bring another page; 0: none do
    room: int = 0  # tokens that are stored before such pages are counted
    rule: int = StoreRule.APPEND
    protects: int = 0
    window: int = 0
    observed_from: int = 0
    first_free: int = 0  # tokens before this one are never freed: others read them, too

    def store(self, position: int, token_class: int, key: Tensor, value: Tensor) -> None:
        """Take a new token, in the place of the least valued one if there is no room."""
        if self.pages is not None and len(self.slots) >= self._capacity(position + 1):
            self.slots.remove(self._victim(position))
        mass = math.inf if token_class & self.protects else 0.0
        self.slots.append(Slot(position, key, value, mass))

    def _capacity(self, num_tokens: int) -> int:
        assert self.pages is not None
        pages = self.pages
        if self.growth_period:
            began = math.ceil(max(0, num_tokens - self.room) / self.page_slots)
            pages += began // self.growth_period
        return pages * self.page_slots

    def _victim(self, position: int) -> Slot:
        own = [slot for slot in self.slots if slot.position >= self.first_free]
        free = [slot for slot in own if slot.mass != math.inf]
        outside = [slot for slot in free if slot.position <= position - self.window]
        if outside and self.rule in (StoreRule.BY_VALUE, StoreRule.BY_ENERGY):
            return min(
                outside,
                key=lambda s: (
                    s.mass / (position - max(s.position, self.observed_from)),
                    s.position,
                ),
            )
        return min(outside or free or own, key=lambda slot: slot.position)

    def attend(self, queries: Tensor, scale: float, pool: str) -> Tensor:
        """Return [G, D], the attention output of G query heads, and accumulate their mass."""
        keys = torch.stack([slot.key for slot in self.slots])
        values = torch.stack([slot.value for slot in self.slots])
        probability = (queries @ keys.T * scale).softmax(-1)
        if self.rule in (StoreRule.BY_VALUE, StoreRule.BY_ENERGY):
            power = 2 if self.rule == StoreRule.BY_ENERGY else 1
            shares = pooled(probability**power, pool).tolist()
            for slot, share in zip(self.slots, shares, strict=True):
                slot.mass += share
        return probability @ values


class Decoder:
    """A Llama- or Qwen2-like model with a cache of heads."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        config = json.loads((directory / "config.json").read_text())
        self.num_layers: int = config["num_hidden_layers"]
        self.num_q_heads: int = config["num_attention_heads"]
        self.num_kv_heads: int = config["num_key_value_heads"]
        hidden = config["hidden_size"]
        self.head_size: int = config.get("head_dim") or hidden // self.num_q_heads
        self.epsilon: float = config["rms_norm_eps"]
        rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"]}
        steps = torch.arange(0, self.head_size, 2, dtype=torch.float64) / self.head_size
        self.frequency = rope["rope_theta"] ** -steps
        self.weights: dict[str, Tensor] = {}
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it cannot be iterated)
                    self.weights[name] = tensors.get_tensor(name).to(dtype)
        self.dtype = dtype
        self.heads: list[list[Head]] = []
        # Of the last prefill, [L, H, N]:
        self.attention = torch.empty(0)  # sum of pooled probabilities of the observed queries
        self.energy = torch.empty(0)  # sum of their pooled squares
        self.value_norm = torch.empty(0)

    @property
    def scale(self) -> float:
        return self.head_size**-0.5

    @property
    def group(self) -> int:
        return self.num_q_heads // self.num_kv_heads

    def prefill(
        self,
        tokens: list[int],
        num_observed: int,
        pool: str = "mean",
        *,
        replay: int = 0,
        replayed: Sequence[range] = (),
    ) -> Tensor:
        """Run a prompt; return [V] logprobs after it. Keeps every token in every head.

        Args:
            num_observed: last queries whose attention is summed.
            replay: if not 0, they are asked from behind the prompt, and those of every block of 512
                tokens from behind it, one of so many keys standing for all.
            replayed: what was computed at a time, one after the other; by default all. Later ones
                stand for what earlier ones left beside the same tokens.
        """
        count = len(tokens)
        self.attention, self.energy, self.value_norm = torch.zeros(
            3, self.num_layers, self.num_kv_heads, count
        )
        self.heads = [[Head() for _ in range(self.num_kv_heads)] for _ in range(self.num_layers)]
        allowed = torch.ones(count, count, dtype=torch.bool).tril()
        hidden = self.weights["model.embed_tokens.weight"][torch.tensor(tokens)]
        for layer in range(self.num_layers):
            query, key, value = self._qkv(layer, hidden, torch.arange(count))
            outputs = []
            for index in range(self.num_kv_heads):
                queries = query[:, index * self.group : (index + 1) * self.group]
                score = torch.einsum("qgd,kd->gqk", queries, key[:, index]) * self.scale
                probability = score.masked_fill(~allowed, -math.inf).softmax(-1)
                if replay:
                    ranges = replayed or [range(count)]
                    self._replay(
                        layer, index, hidden, key[:, index], num_observed, pool, replay, ranges
                    )
                else:
                    seen = probability[:, count - num_observed :]
                    self.attention[layer, index] = pooled(seen, pool).sum(0)
                    self.energy[layer, index] = pooled(seen * seen, pool).sum(0)
                self.value_norm[layer, index] = (value[:, index] ** 2).sum(-1).sqrt()
                outputs.append(torch.einsum("gqk,kd->qgd", probability, value[:, index]))
                self.heads[layer][index].slots = [
                    Slot(p, key[p, index], value[p, index], 0.0) for p in range(count)
                ]
            hidden = self._finish_layer(layer, hidden, torch.cat(outputs, 1).flatten(1))
        return self._logprobs(hidden[-1])

    def _replay(
        self,
        layer: int,
        index: int,
        hidden: Tensor,
        key: Tensor,
        num_last: int,
        pool: str,
        sample: int,
        replayed: Sequence[range],
    ) -> None:
        """Sum what queries read that are embedded as if they stood behind all keys."""
        count = len(hidden)
        energy = torch.full((count,), torch.nan)
        for positions in replayed:
            for block in range(positions.start // BLOCK * BLOCK, positions.stop, BLOCK):
                first, last = max(block, positions.start), min(block + BLOCK, positions.stop)
                p = self._behind(layer, index, hidden[:last], key[:last], first, sample)
                tile = torch.arange(last) // 32 - torch.arange(first, last)[:, None] // 32
                p = p * ((tile == 0) | (tile == 1))  # [G, W, last]
                energy[first:last] = pooled(p * p, pool).sum(0)[first:]
        energy = energy.nan_to_num(float(energy.nanmedian()))
        p = self._behind(layer, index, hidden, key, count - num_last, 1)
        self.attention[layer, index] = pooled(p, pool).sum(0)
        weight = min(LAST, count)
        total = pooled(p * p, pool).sum(0) + energy * weight / count
        self.energy[layer, index] = total * 2 * num_last / (num_last + weight)

    def _behind(
        self, layer: int, index: int, hidden: Tensor, key: Tensor, first: int, sample: int
    ) -> Tensor:
        """[G, W, n], what queries from ``first`` on read of n keys, of which some stand for all."""
        count = len(key)
        position = torch.arange(first, count)
        heads = slice(index * self.group, (index + 1) * self.group)
        rows = hidden[first:count]
        near = self._qkv(layer, rows, position)[0][:, heads].transpose(0, 1)
        far = self._qkv(layer, rows, position + count - first)[0][:, heads].transpose(0, 1)
        token, row = torch.arange(count), position[:, None]
        neighbours = (near @ key.T * self.scale).exp() * ((token <= row) & (token > row - 32))
        scores = (far @ key.T * self.scale).exp()
        stands_for = torch.where(token % sample == sample - 1, float(sample), 0.0)
        stands_for[: 4 if sample > 1 else 0] = 1
        tile = token // 32 - row // 32
        stands_for = torch.where((tile == 0) | (tile == 1), 1.0, stands_for)
        total = (scores * stands_for).sum(-1, keepdim=True) + neighbours.sum(-1, keepdim=True)
        return scores / total

    def compact(self, keep: Tensor, records: Tensor, token_class: Tensor, block_size: int) -> None:
        """Keep only ``keep`` [L, H, N] and store by the head records from now on."""
        for layer, heads in enumerate(self.heads):
            for index, head in enumerate(heads):
                record = records[layer, index].tolist()
                head.rule = record[HeadField.RULE]
                if head.rule != StoreRule.APPEND:
                    head.pages = record[HeadField.STOCK_PAGES] + record[HeadField.NUM_PAGES]
                head.first_free = record[HeadField.READ_ONLY] * block_size
                head.page_slots = block_size
                head.growth_period = record[HeadField.GROWTH_PERIOD]
                head.room = record[HeadField.ROOM]
                head.protects = record[HeadField.PROTECTS]
                head.window = record[HeadField.WINDOW]
                head.observed_from = record[HeadField.OBSERVED_FROM]
                head.slots = [slot for slot in head.slots if keep[layer, index, slot.position]]
                for slot in head.slots:
                    profile = self.energy if head.rule == StoreRule.BY_ENERGY else self.attention
                    slot.mass = float(profile[layer, index, slot.position])
                    if int(token_class[slot.position]) & head.protects:
                        slot.mass = math.inf

    def decode(self, token: int, position: int, token_class: int, pool: str = "mean") -> Tensor:
        """Run one token; return [V] logprobs after it."""
        hidden = self.weights["model.embed_tokens.weight"][token][None]
        for layer, heads in enumerate(self.heads):
            query, key, value = self._qkv(layer, hidden, torch.tensor([position]))
            outputs = []
            for index, head in enumerate(heads):
                head.store(position, token_class, key[0, index], value[0, index])
                queries = query[0, index * self.group : (index + 1) * self.group]
                outputs.append(head.attend(queries, self.scale, pool))
            hidden = self._finish_layer(layer, hidden, torch.cat(outputs).flatten()[None])
        return self._logprobs(hidden[-1])

    def kept_positions(self) -> list[list[list[int]]]:
        """Positions that every head holds now, ``[L][H]``, sorted."""
        return [
            [sorted(slot.position for slot in head.slots) for head in heads] for heads in self.heads
        ]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return torch.nn.functional.linear(x, self.weights[f"{name}.weight"], bias)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return scaled * self.weights[f"{name}.weight"]

    def _qkv(self, layer: int, hidden: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prefix = f"model.layers.{layer}"
        x = self._norm(f"{prefix}.input_layernorm", hidden)
        query, key, value = (
            self._linear(f"{prefix}.self_attn.{name}_proj", x).view(len(hidden), -1, self.head_size)
            for name in "qkv"
        )
        angle = position[:, None].double() * self.frequency
        cos, sin = angle.cos().to(self.dtype)[:, None], angle.sin().to(self.dtype)[:, None]

        def rotate(x: Tensor) -> Tensor:
            low, high = x.chunk(2, -1)
            return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

        return rotate(query), rotate(key), value

    def _finish_layer(self, layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        prefix = f"model.layers.{layer}"
        hidden = hidden + self._linear(f"{prefix}.self_attn.o_proj", attended)
        x = self._norm(f"{prefix}.post_attention_layernorm", hidden)
        gate = torch.nn.functional.silu(self._linear(f"{prefix}.mlp.gate_proj", x))
        up = self._linear(f"{prefix}.mlp.up_proj", x)
        return hidden + self._linear(f"{prefix}.mlp.down_proj", gate * up)

    def _logprobs(self, hidden: Tensor) -> Tensor:
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return (self._norm("model.norm", hidden) @ head.T).float().log_softmax(-1)
