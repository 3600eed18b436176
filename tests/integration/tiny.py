"""Small random models, so that tests can afford many engines."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 512


def save_tiny_llama(directory: Path, **options: Any) -> Path:
    """A random Llama: 3 layers, 4 query heads over 2 KV heads of size 32."""
    return save_random(directory, LlamaConfig(**(tiny_shape() | options)))


def save_tiny_qwen2(directory: Path) -> Path:
    """A random Qwen2, which has biases in QKV, with tied embeddings."""
    return save_random(directory, Qwen2Config(**tiny_shape(), tie_word_embeddings=True))


def save_tiny_qwen3(directory: Path) -> Path:
    """A random Qwen3, which normalises queries and keys."""
    return save_random(directory, Qwen3Config(**tiny_shape()))


def save_tiny_mistral(directory: Path) -> Path:
    """A random Mistral without sliding window."""
    return save_random(directory, MistralConfig(**tiny_shape(), sliding_window=None))


def tiny_shape() -> dict[str, Any]:
    """Options that all these models share."""
    return dict(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
    )


def save_random(directory: Path, config: Any) -> Path:
    """Save a model of this configuration with random weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(directory)
    return directory


def random_prompts(lengths: list[int], seed: int = 1) -> list[list[int]]:
    """Prompts of the given lengths, without special ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]
