"""How much a head would miss each token of a prompt."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

#: Tokens after an important one that matter too, and how much of its importance they have. Chosen
#: on the default model: docs/fidelity.md.
FOLLOWERS = 8
FOLLOWER_WEIGHT = 0.1


def importance(energy: Tensor, value_norm: Tensor, *, with_followers: bool = True) -> Tensor:
    """Return [L, H, N] float32, in no unit: only the order matters.

    Without a token that a query gives the probability ``p``, a head's output changes by about
    ``p * |v|``; energy times squared norm sums the squares of that. Squares make one strong look
    count for more than many faint ones.

    Attention finds what it looks for by what comes before it: a question about a pass key makes
    heads look at the words "the pass key is" in the prompt, not yet at the key. So the
    tokens that follow a token have a share of its importance. Queries that are replayed look at the
    key themselves: there the word before it does.

    Args:
        energy: [L, H, N] float32, sum of squared probabilities over observed queries.
        value_norm: [L, H, N] float32, norm of each token's value vector.
        with_followers: whether tokens have a share of what those before them have.
    """
    own = energy * value_norm.square()
    if not with_followers:
        return own
    before = max_pool1d(pad(own, (FOLLOWERS, 0))[..., :-1], FOLLOWERS, stride=1)
    return torch.maximum(own, FOLLOWER_WEIGHT * before)


def largest_first(values: Tensor) -> Tensor:
    """Return [n] int64, the indices of values [n] in descending order, of equals the first first.

    Floats that are not negative are ordered as their bits are, so one sort of 64-bit keys, the
    value above and the index below, does what a stable argsort does, in a fraction of its time.

    Args:
        values: [n] float32, none below 0.
    """
    bits = values.view(torch.int32).to(torch.int64)
    keys = ((torch.iinfo(torch.int32).max - bits) << 32) | torch.arange(len(values))
    return ascending(keys) & 0xFFFFFFFF


def ascending(numbers: Tensor) -> Tensor:
    """Return integers [n] in ascending order.

    On a CPU by NumPy, whose sort uses the processor's vectors; PyTorch's does not.
    """
    if numbers.device.type == "cpu":
        return torch.from_numpy(np.sort(numbers.numpy()))
    return numbers.sort().values
