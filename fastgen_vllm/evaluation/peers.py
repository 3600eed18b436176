"""Methods of others, applied to the prompts that ours are applied to, at equal memory.

Each decides from the prefill of the whole prompt: whatever the prompt asks at its end is known
to every method that looks. What kvpress has runs with its code; the rest is written here after
the papers. KVzip reads the prompt twice and is a bound, not a peer.
"""

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from fastgen_vllm.evaluation import ahakv, defensive, kvzip, presses
from fastgen_vllm.evaluation.dense import DenseModel, Head, Prefill
from fastgen_vllm.evaluation.statistics import BOUND, KVPRESS, PEER


class Peers:
    """All peers over one prompt; what does not depend on the kept share is computed once.

    Args:
        dense: the model that ran the prefill.
        prefill: of the prompt.
        request: token ids that would make the model repeat the prompt.
    """

    def __init__(self, dense: DenseModel, prefill: Prefill, request: list[int]) -> None:
        self.dense = dense
        self.prefill = prefill
        self._request = request
        self._scores: presses.Scores = {}

    def compress(self, name: str, keep: float) -> list[list[Head]]:
        """Return what one method keeps, ``[L][H]``.

        Args:
            name: one of :data:`PEERS`.
            keep: kept share, in (0, 1).
        """
        if name in _OWN:
            return self.prefill.heads(_OWN[name](self, keep))
        press = name.removeprefix(KVPRESS)
        return presses.compress(press, keep, self.dense.model, self.prefill, self._scores)

    @cached_property
    def look(self) -> defensive.Look:
        """What DefensiveKV's window sees."""
        return defensive.look(self.prefill)

    @cached_property
    def repetition(self) -> Tensor:
        """[L, H, N] KVzip's scores."""
        return kvzip.score(self.dense, self.prefill, self._request)


#: Methods written here: name, and the [L, H, N] mask of kept tokens at a share.
_OWN: dict[str, Callable[[Peers, float], Tensor]] = {
    f"{PEER}AhaKV": lambda peers, share: ahakv.keep(peers.prefill, share),
    f"{PEER}DefensiveKV": lambda peers, share: defensive.keep(
        peers.look, share, across_layers=False
    ),
    f"{PEER}Layer-DefensiveKV": lambda peers, share: defensive.keep(
        peers.look, share, across_layers=True
    ),
    f"{BOUND}KVzip": lambda peers, share: kvzip.keep(peers.repetition, share),
}
PEERS = (*(f"{KVPRESS}{name}" for name in presses.PRESSES), *_OWN)
