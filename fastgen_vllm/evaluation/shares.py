"""From scores to kept tokens."""

import torch
from torch import Tensor


def best(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the same shape: the ``count`` highest scores, whatever head has them."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[scores.flatten().topk(count).indices] = True
    return kept.view_as(scores)
