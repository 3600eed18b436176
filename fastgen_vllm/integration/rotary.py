"""The rotary embedding of a model of vLLM's, as queries are turned by it."""

import torch
from torch import nn
from vllm.model_executor.layers import rotary_embedding as rotary
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from fastgen_vllm.profile.replay import BLOCK, Rotation

#: Those in which a position is one number that turns every pair of columns by its own angle.
_PLAIN = (
    rotary.RotaryEmbedding,
    rotary.DynamicNTKAlphaRotaryEmbedding,
    rotary.DynamicNTKScalingRotaryEmbedding,
    rotary.LinearScalingRotaryEmbedding,
    rotary.Llama3RotaryEmbedding,
    rotary.NTKScalingRotaryEmbedding,
    rotary.YaRNScalingRotaryEmbedding,
)


def rotation_of(model: nn.Module, device: torch.device) -> Rotation:
    """Return how a model's queries are turned.

    Raises:
        ValueError: its embedding cannot be turned by a number of positions; says why.
    """
    found: dict[tuple[type, str], RotaryEmbeddingBase] = {}
    for module in model.modules():
        if isinstance(module, RotaryEmbeddingBase):
            if type(module) not in _PLAIN:
                raise ValueError(
                    f"its rotary embedding, {type(module).__name__}, is not turned by one number"
                )
            found[type(module), module.extra_repr()] = module
    if not found:
        return Rotation.none(device)
    if len(found) > 1:
        raise ValueError(f"its layers have {len(found)} different rotary embeddings")
    (module,) = found.values()
    if module.max_position_embeddings <= BLOCK:
        raise ValueError(f"its rotary embedding knows no position {BLOCK}")
    cos, sin = module._compute_cos_sin_cache().float().to(device).chunk(2, dim=-1)
    return Rotation.of(cos, sin, not module.is_neox_style)
