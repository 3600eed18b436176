"""A Llama whose layers differ in query heads over equal KV heads: two groups of one cache."""

import copy
import json
from pathlib import Path
from typing import Any

from torch import nn
from vllm import ModelRegistry
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM

from tests.integration.tiny import save_tiny_llama

NAME = "MixedHeadsForCausalLM"


class MixedHeadsLayer(LlamaDecoderLayer):
    """Every second layer has twice the query heads."""

    def __init__(self, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        config = copy.copy(vllm_config.model_config.hf_config)
        if int(prefix.rpartition(".")[2]) % 2:
            config.num_attention_heads *= 2
        super().__init__(vllm_config, prefix, config=config, **kwargs)


class MixedHeadsForCausalLM(LlamaForCausalLM):
    """Served with random weights: `load_format="dummy"`."""

    def _init_model(
        self, vllm_config: Any, prefix: str = "", layer_type: type[nn.Module] = MixedHeadsLayer
    ) -> nn.Module:
        return super()._init_model(vllm_config, prefix, MixedHeadsLayer)


def save_mixed(directory: Path) -> Path:
    """Register the model and save a configuration that names it."""
    ModelRegistry.register_model(NAME, MixedHeadsForCausalLM)
    path = save_tiny_llama(directory) / "config.json"
    config = json.loads(path.read_text()) | {"architectures": [NAME]}
    path.write_text(json.dumps(config))
    return directory
