"""Tokenizers of all models that can be served."""

from typing import Any


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model, also of one of ours, whose configuration transformers lacks.

    Args:
        model: directory or hub name.
    """
    from transformers import AutoTokenizer

    from fastgen_vllm.models.lckv.config import register_config

    register_config()
    return AutoTokenizer.from_pretrained(model)
