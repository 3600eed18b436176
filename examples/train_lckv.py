"""Train a small LCKV language model and its plain twin on a CPU, in the published format.

    python examples/train_lckv.py out                  # both, 35 minutes on two cores
    python examples/train_lckv.py out --steps 200      # a taste

Same text, tokenizer, number of weights, batches and steps for both; interrupted, it goes on where
it was when started again. Afterwards: ``fastgen-vllm serve out/lckv``. What comes out is a toy that
shows what the engine does with such a model, not what LCKV costs in quality.

Training is the paper's (arXiv 2405.10637, section 3): the cycle of layers is passed ``m`` times
without gradient, then ``b`` times with, every pass reading the K and V of the pass before.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu
from transformers import PreTrainedTokenizerFast

from fastgen_vllm.evaluation.texts import built_in_corpora
from fastgen_vllm.models.lckv.config import LCKVLlamaConfig
from fastgen_vllm.models.lckv.layer_types import LayerTypes

VOCABULARY = 4096
LAYERS = 8
TYPES = {"lckv": "0_6_6_6_6_6_6_7", "plain": "_".join(map(str, range(LAYERS)))}
HIDDEN, HEADS, KV_HEADS, HEAD_SIZE = 192, 6, 3, 32
#: K and V projections that the condensed layers lack go into wider MLPs: equal weights.
INTERMEDIATE = {"lckv": 552, "plain": 512}
STEP_TOKENS = 2048
#: Tokens of a window, and from which part of the steps on.
WINDOWS = {0.0: 256, 0.9: 1024}
CONTEXT = max(WINDOWS.values())
HELD_OUT = 0.05  # last part of every document
FEWER_PASSES = (1, 2, 3, 5)  # to measure besides
LEARNING_RATE = 1.5e-3
SAVED_EVERY = 60  # seconds


class Norm(nn.Module):
    """RMS norm."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (HIDDEN,), self.weight, self.eps)


class Attention(nn.Module):
    """Projections; layers that read others have no k and v."""

    def __init__(self, owns: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_SIZE, bias=False)
        if owns:
            self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_SIZE, bias=False)
            self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_SIZE, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_SIZE, HIDDEN, bias=False)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, intermediate, bias=False)
        self.up_proj = nn.Linear(HIDDEN, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A decoder layer; :class:`Model` runs it."""

    def __init__(self, config: LCKVLlamaConfig, owns: bool) -> None:
        super().__init__()
        self.self_attn = Attention(owns)
        self.mlp = MLP(config.intermediate_size)
        self.input_layernorm = Norm(config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.rms_norm_eps)


class Body(nn.Module):
    """What is below the logits."""

    def __init__(self, config: LCKVLlamaConfig, types: LayerTypes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer(config, types.owns(i)) for i in range(LAYERS))
        self.norm = Norm(config.rms_norm_eps)


class Model(nn.Module):
    """Parameters are named as in published checkpoints; embeddings are tied."""

    def __init__(self, config: LCKVLlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.types = config.parsed_layers
        self.model = Body(config, self.types)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        position = torch.arange(CONTEXT)
        angle = position[:, None] * 10000.0 ** -(torch.arange(HEAD_SIZE // 2) / (HEAD_SIZE / 2))
        self.rotation = (angle.cos(), angle.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        body, cycle = self.model, self.types.cycle
        x = body.embed_tokens(tokens)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        x = self._run(x, range(cycle.start), kept)
        if cycle:
            zero = x.new_zeros(len(tokens), KV_HEADS, tokens.shape[1], HEAD_SIZE)
            for layer in cycle:
                kept[self.types.sources[layer]] = (zero, zero)
            with torch.no_grad():
                for _ in range(self.config.forward_passes):
                    self._run(x, cycle, kept)
            entry = x
            for _ in range(self.config.backward_passes):
                x = self._run(entry, cycle, kept)
        x = self._run(x, range(cycle.stop, LAYERS), kept)
        return body.norm(x) @ body.embed_tokens.weight.T

    def _run(self, x: Tensor, some: range, kept: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        for index in some:
            layer = self.model.layers[index]
            h = layer.input_layernorm(x)
            attention, source = layer.self_attn, self.types.sources[index]
            query = self._rotate(self._heads(attention.q_proj(h)))
            if source == index:
                key = self._rotate(self._heads(attention.k_proj(h)))
                kept[index] = (key, self._heads(attention.v_proj(h)))
            key, value = kept[source]
            if self.types.looks_up(index):
                # Each token sees what came before it, the first one nothing.
                seen = self._attend(query[:, :, 1:], key[:, :, :-1], value[:, :, :-1])
                attended = torch.cat([torch.zeros_like(query[:, :, :1]), seen], dim=2)
            else:
                attended = self._attend(query, key, value)
            x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return x

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2)

    def _rotate(self, x: Tensor) -> Tensor:
        cos, sin = (part[: x.shape[2]] for part in self.rotation)
        low, high = x.chunk(2, dim=-1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def main() -> None:
    """Train both models, or go on with them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="directory of both models")
    parser.add_argument("--steps", type=int, default=700, help="of 2,048 tokens each")
    parser.add_argument("--forward-passes", type=int, default=7)
    parser.add_argument("--backward-passes", type=int, default=2)
    options = parser.parse_args()
    documents = [d for corpus in built_in_corpora() for d in corpus.documents]
    cuts = [int(len(d) * (1 - HELD_OUT)) for d in documents]
    tokenizer = train_tokenizer(options.out, [d[:n] for d, n in zip(documents, cuts, strict=True)])
    train, held_out = (
        torch.tensor([i for text in texts for i in tokenizer.encode(text).ids])
        for texts in (
            [d[:n] for d, n in zip(documents, cuts, strict=True)],
            [d[n:] for d, n in zip(documents, cuts, strict=True)],
        )
    )
    print(f"{len(train)} tokens to train on, {len(held_out)} held out")
    for name in TYPES:
        for passes, perplexity in train_model(name, options, train, held_out).items():
            print(f"{name}: held-out perplexity {perplexity:.2f} with {passes} passes", flush=True)


def train_tokenizer(out: Path, texts: list[str]) -> Tokenizer:
    """A byte-level BPE of the text, saved beside each model."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "tokenizer.json"
    if not file.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.save(str(file))
    return Tokenizer.from_file(str(file))


def config_of(name: str, options: argparse.Namespace) -> LCKVLlamaConfig:
    """Configuration of one of the two models."""
    return LCKVLlamaConfig(
        layer_types=TYPES[name],
        forward_passes=options.forward_passes,
        backward_passes=options.backward_passes,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE[name],
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        architectures=["LCKVLlamaForCausalLM"],
        dtype="float32",
    )


def train_model(
    name: str, options: argparse.Namespace, train: Tensor, held_out: Tensor
) -> dict[int, float]:
    """Train one model, or go on with it; save it; return its perplexity on the held-out text.

    Returns:
        The perplexity by how often prompts pass the cycle, as trained and less often.
    """
    folder = options.out / name
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = Model(config_of(name, options))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1
    )
    state = folder / "training.pt"
    done = 0
    if state.exists():
        saved: dict[str, Any] = torch.load(state)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["steps"]
    count = sum(p.numel() for p in model.parameters())
    print(f"{name}: {count} weights, step {done} of {options.steps}", flush=True)

    def save(steps: int) -> None:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": steps}
        torch.save(parts, state.with_suffix(".new"))
        state.with_suffix(".new").replace(state)

    started = saved_at = time.monotonic()
    for step in range(done, options.steps):
        warmup = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = (
                LEARNING_RATE * warmup * (1 + math.cos(math.pi * step / options.steps)) / 2
            )
        loss = loss_of(model, batch(train, step, window_at(step / options.steps)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            pace = (time.monotonic() - started) / (step - done + 1)
            left = pace * (options.steps - step - 1) / 60
            print(f"{name}: step {step}, loss {loss.item():.3f}, {left:.0f} min left", flush=True)
        if time.monotonic() - saved_at > SAVED_EVERY:
            save(step + 1)
            saved_at = time.monotonic()
    save(options.steps)
    model.config.save_pretrained(folder)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    PreTrainedTokenizerFast(
        tokenizer_file=str(options.out / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    counts = {1}
    if model.types.cycle:
        counts = {n for n in FEWER_PASSES if n < model.config.passes} | {model.config.passes}
    perplexity = {}
    for passes in sorted(counts):
        model.config.forward_passes, model.config.backward_passes = passes - 1, 1
        perplexity[passes] = measure(model, held_out)
    (folder / "perplexity.json").write_text(json.dumps(perplexity))
    return perplexity


def window_at(part: float) -> int:
    """Tokens of a window after that part of the steps: most are cheap, the last ones long."""
    return WINDOWS[max(start for start in WINDOWS if start <= part)]


def batch(tokens: Tensor, step: int, window: int) -> Tensor:
    """[B, T + 1] random windows, the same for both models."""
    random = torch.Generator().manual_seed(step)
    starts = torch.randint(len(tokens) - window - 1, (STEP_TOKENS // window,), generator=random)
    return torch.stack([tokens[s : s + window + 1] for s in starts.tolist()])


def loss_of(model: Model, windows: Tensor) -> Tensor:
    """Mean cross-entropy of [B, T + 1] windows."""
    logits = model(windows[:, :-1])
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def measure(model: Model, held_out: Tensor) -> float:
    """Perplexity in windows of the longest training length, one after another."""

    def windows() -> Iterator[Tensor]:
        for start in range(0, len(held_out) - CONTEXT - 1, STEP_TOKENS):
            rows = range(start, min(start + STEP_TOKENS, len(held_out) - CONTEXT - 1), CONTEXT)
            yield torch.stack([held_out[s : s + CONTEXT + 1] for s in rows])

    losses = [(loss_of(model, rows).item(), len(rows)) for rows in windows()]
    return math.exp(sum(loss * n for loss, n in losses) / sum(n for _, n in losses))


if __name__ == "__main__":
    main()
