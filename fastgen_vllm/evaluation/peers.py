"""Methods of kvpress, applied to the prompts that ours are applied to.

Each method decides with its own code and its authors' defaults, from the prefill of the whole
prompt: whatever the prompt asks at its end is known to every method that looks. See
https://github.com/NVIDIA/kvpress.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgen_vllm.evaluation.dense import Head, Prefill

INSTALL = (
    "--peers needs kvpress: run `make setup`, or `pip install --no-deps -r requirements/peers.txt`"
)

#: Remembers the scores of a press, for methods whose scores do not depend on the kept share.
Once = Callable[[Any], Any]

#: Name, and what builds the press for a compression ratio. ExpectedAttention takes the epsilon
#: that kvpress recommends below AdaKV, where values of all heads are compared.
_PRESSES: dict[str, Callable[[Any, float, Once], Any]] = {
    "StreamingLLM": lambda k, ratio, once: k.StreamingLLMPress(ratio),
    "SnapKV": lambda k, ratio, once: once(k.SnapKVPress(ratio)),
    "TOVA": lambda k, ratio, once: once(k.TOVAPress(ratio)),
    "KeyDiff": lambda k, ratio, once: once(k.KeyDiffPress(ratio)),
    "ExpectedAttention": lambda k, ratio, once: once(k.ExpectedAttentionPress(ratio)),
    "AdaKV SnapKV": lambda k, ratio, once: k.AdaKVPress(once(k.SnapKVPress(ratio))),
    "AdaKV ExpectedAttention": lambda k, ratio, once: k.AdaKVPress(
        once(k.ExpectedAttentionPress(ratio, epsilon=1e-2))
    ),
}
PEERS = tuple(_PRESSES)


def require_kvpress() -> Any:
    """Return the kvpress module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import kvpress
    except ImportError as error:
        raise ValueError(f"{INSTALL} ({error}).") from None
    return kvpress


def compress(
    name: str,
    keep: float,
    model: Any,
    prefill: Prefill,
    scores: dict[tuple[str, Any], Tensor] | None = None,
) -> list[list[Head]]:
    """Return what one method keeps of a prompt, ``[L][H]``.

    Args:
        name: one of :data:`PEERS`.
        keep: kept share, in (0, 1).
        model: the transformers model that ran the prefill.
        scores: given to all calls for one prompt, spares scoring it anew for every kept share.
    """
    known = {} if scores is None else scores

    def once(press: Any) -> Any:
        class ScoringOnce(type(press)):  # type: ignore[misc]
            def score(self, module: Any, *args: Any, **kwargs: Any) -> Tensor:
                key = (name, module)
                if key not in known:
                    known[key] = super().score(module, *args, **kwargs)
                return known[key].clone()  # AdaKV writes into them

        return ScoringOnce(**vars(press))

    press = _PRESSES[name](require_kvpress(), 1 - keep, once)
    press.post_init_from_model(model)
    heads = []
    for layer in prefill.layers:
        module: Any = layer.module
        module.rotary_emb = model.model.rotary_emb
        module.masked_key_indices = None
        keys, values = press.compress(
            module,
            layer.arguments["hidden_states"],
            layer.keys,
            layer.values,
            None,
            layer.arguments,
        )
        heads.append(_heads(keys, values, module.masked_key_indices))
    return heads


def _heads(
    keys: Tensor, values: Tensor, masked: tuple[Tensor, Tensor, Tensor] | None
) -> list[Head]:
    """Split by head; keys that a press only masks (AdaKV) are left out."""
    keep = torch.ones(keys.shape[1:3], dtype=torch.bool)
    if masked is not None:
        _batch, head, token = masked
        keep[head, token] = False
    return [Head(k[kept], v[kept]) for k, v, kept in zip(keys[0], values[0], keep, strict=True)]
