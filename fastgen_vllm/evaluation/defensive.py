"""DefensiveKV and Layer-DefensiveKV (arXiv 2510.13334), after their description.

A token's worth is the worst case over the queries of a window at the prompt's end, not their
mean: what any of them looks at is kept. DefensiveKV shares the budget among the heads of a
layer, Layer-DefensiveKV among all heads of all layers.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from fastgen_vllm.evaluation.dense import LayerCall, Prefill
from fastgen_vllm.evaluation.shares import best

WINDOW = 32  # observed queries, whose own tokens are always kept
_POOLING = 5  # tokens
_PROTECTED = 0.9  # attention mass that a head never loses


class Look(NamedTuple):
    """What the window says of the tokens before it, ``n = N - WINDOW``."""

    mean: Tensor  # [L, H, n] attention, mean over query heads and the window
    risk: Tensor  # [L, H, n] worst case times what the value adds to the output


def look(prefill: Prefill) -> Look:
    """Judge every token before the window; what is kept does not change it."""
    layers = [_attention(layer) for layer in prefill.layers]
    mean = torch.stack([attention.mean((1, 2)) for attention in layers])
    risk = torch.stack(
        [
            worst_case(attention) * output_share(layer)
            for attention, layer in zip(layers, prefill.layers, strict=True)
        ]
    )
    return Look(mean, risk)


def _attention(layer: LayerCall) -> Tensor:
    """[H, G, W, n] attention of the window to the tokens before it; the rest went to its own."""
    queries, keys = layer.queries(WINDOW), layer.keys[0, :, None]
    logits = queries @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5
    future = torch.ones(WINDOW, WINDOW, dtype=torch.bool).triu(1)
    logits[..., -WINDOW:].masked_fill_(future, -torch.inf)
    attention: Tensor = logits.float().softmax(-1)
    return attention[..., :-WINDOW]


def worst_case(attention: Tensor) -> Tensor:
    """Largest pooled attention over query heads and window, at least its mean over tokens.

    Pooling along the tokens leaves the sum of every query as it was.

    Args:
        attention: [H, G, W, n].

    Returns:
        [H, n].
    """
    pooled = avg_pool1d(attention.flatten(0, 1), _POOLING, stride=1, padding=_POOLING // 2)
    pooled = pooled.view_as(attention)
    pooled = pooled * (attention.sum(-1, keepdim=True) / pooled.sum(-1, keepdim=True))
    worst = pooled.amax((1, 2))
    return worst.clamp(min=worst.mean(-1, keepdim=True))


def output_share(layer: LayerCall) -> Tensor:
    """[H, n] L1 norm of a value's part of the output, over the sum of all heads' at its token."""
    values, weights = layer.values[0, :, :-WINDOW], layer.output_weights()
    # One query head at a time: the whole would be G times as large as the hidden states.
    parts = (values @ weights[:, g].contiguous() for g in range(weights.shape[1]))
    norm = torch.stack([part.norm(p=1, dim=-1) for part in parts]).mean(0)
    return norm / norm.sum(0)


def protected(mean: Tensor, most: int) -> Tensor:
    """[..., n] bool: each head's most attended tokens, short of nine tenths of its attention.

    The attention to the last tokens before the window, which are like those in it, counts as
    already held.

    Args:
        mean: [..., n].
        most: tokens of a head at most.
    """
    held = mean[..., -WINDOW:].sum(-1).mean(-1, keepdim=True)[..., None]
    value, order = (mean / mean.sum(-1, keepdim=True)).sort(-1, descending=True)
    reached = value.cumsum(-1) >= _PROTECTED - held
    count = reached.int().argmax(-1, keepdim=True).clamp(max=max(0, most))
    first = torch.arange(mean.shape[-1]) < count
    return torch.zeros_like(first).scatter(-1, order, first)


def keep(seen: Look, share: float, *, across_layers: bool) -> Tensor:
    """Return [L, H, N] bool, kept tokens.

    Args:
        share: of the prompt, over the heads that share a budget.
        across_layers: one budget over all layers (Layer-DefensiveKV), or one for each.
    """
    layers, heads, before = seen.risk.shape
    length = before + WINDOW
    sure = protected(seen.mean, int(length * share) - WINDOW)
    highest = seen.risk.amax((1, 2), keepdim=True)
    score = pad(seen.risk.where(~sure, highest), (0, WINDOW))
    score[..., -WINDOW:] = highest
    if across_layers:
        return best(score, int(length * share * layers * heads))
    return torch.stack([best(layer, int(length * share) * heads) for layer in score])
