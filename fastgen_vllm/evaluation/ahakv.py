"""AhaKV (arXiv 2506.03762), after its description, at the end of a prompt.

Attention accumulated over the last queries, each row's softmax sharpened so that its entropy is
that of as many tokens as will be kept, times the size of the values. Every head keeps as many.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from fastgen_vllm.evaluation.dense import LayerCall, Prefill

RECENT = 32  # accumulated rows, whose own tokens are always kept
_POOLING = 5  # tokens; the paper does not say


def sharpness(visible: Tensor, budget: int, size: int) -> Tensor:
    """Factor of raw products ``q . k`` that leaves a softmax the entropy of ``budget`` tokens.

    Args:
        visible: tokens that each row sees.
        size: of a head.
    """
    return (2 * (visible / budget).log().clamp(min=0) / size).sqrt()


def score(layer: LayerCall, budget: int) -> Tensor:
    """[H, N] worth of every token when every head keeps ``budget``."""
    keys, values = layer.keys[0], layer.values[0]
    length, size = keys.shape[1:]
    visible = torch.arange(length - RECENT + 1, length + 1)
    products = layer.queries(RECENT) @ keys[:, None].transpose(-1, -2)  # [H, G, R, N]
    logits = products.float() * sharpness(visible, budget, size)[:, None]
    logits.masked_fill_(torch.arange(length) >= visible[:, None], -math.inf)
    accumulated = logits.softmax(-1).sum(2).mean(1)
    sizes = values.float().square().sum(-1)
    # Neighbours beyond an end are no tokens: they do not count.
    pooled = avg_pool1d(sizes, _POOLING, 1, _POOLING // 2, count_include_pad=False)
    return accumulated * pooled / pooled.amax(-1, keepdim=True)


def keep(prefill: Prefill, share: float) -> Tensor:
    """Return [L, H, N] bool, kept tokens."""
    budget = max(1, int(prefill.num_tokens * share))
    recent = min(RECENT, budget)
    scores = torch.stack([score(layer, budget) for layer in prefill.layers])
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    kept[..., -recent:] = True
    valued = scores[..., :-recent].topk(budget - recent).indices
    return kept.scatter(-1, valued, value=True)
