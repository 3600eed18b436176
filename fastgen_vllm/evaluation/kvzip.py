"""KVzip (arXiv 2505.23416), after its description: an upper bound that costs a second prefill.

The model is made to repeat its prompt, and a token is worth the largest attention that any query
of the repetition pays to it. One budget is shared by all heads of all layers.
"""

import torch
from torch import Tensor

from fastgen_vllm.evaluation.dense import DenseModel, Prefill
from fastgen_vllm.evaluation.shares import best

#: What makes the model repeat its prompt, before the template begins its reply.
REQUEST = "\n\nRepeat the previous context exactly."
_SINKS = 4  # first tokens, always kept
_CHUNK = 2048  # tokens repeated at a time


def score(dense: DenseModel, prefill: Prefill, request: list[int]) -> Tensor:
    """Return [L, H, N] largest attention paid by a repetition of the prompt.

    Args:
        request: token ids that come before the repetition.
    """
    layer = prefill.layers[0]
    scores = torch.zeros(len(prefill.layers), layer.keys.shape[1], prefill.num_tokens)

    def watch(number: int, head: int, attention: Tensor) -> None:
        scores[number, head] = scores[number, head].maximum(attention.float().amax((0, 1)))

    for begin in range(0, prefill.num_tokens, _CHUNK):
        dense.watch(prefill, request + prefill.tokens[begin : begin + _CHUNK], watch)
    return scores


def keep(scores: Tensor, share: float) -> Tensor:
    """Return [L, H, N] bool, kept tokens."""
    scores = scores.clone()
    scores[..., :_SINKS] = torch.inf
    return best(scores, int(scores.numel() * share))
