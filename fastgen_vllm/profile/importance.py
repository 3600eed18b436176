"""How much a head would miss each token of a prompt."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

#: Tokens after an important one that matter too, and how much of its importance they have. Chosen
#: on the default model: docs/fidelity.md.
FOLLOWERS = 8
FOLLOWER_WEIGHT = 0.1


def importance(energy: Tensor, value_norm: Tensor) -> Tensor:
    """Return [L, H, N] float32, in no unit: only the order matters.

    Without a token that a query gives the probability ``p``, a head's output changes by about
    ``p * |v|``; energy times squared norm sums the squares of that. Squares make one strong look
    count for more than many faint ones.

    Attention finds what it looks for by what comes before it: a question about a pass key makes
    heads look at the words "the pass key is" in the prompt, not yet at the key. So the
    tokens that follow a token have a share of its importance.

    Args:
        energy: [L, H, N] float32, sum of squared probabilities over observed queries.
        value_norm: [L, H, N] float32, norm of each token's value vector.
    """
    own = energy * value_norm.square()
    before = max_pool1d(pad(own, (FOLLOWERS, 0))[..., :-1], FOLLOWERS, stride=1)
    return torch.maximum(own, FOLLOWER_WEIGHT * before)
