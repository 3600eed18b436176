"""Methods of kvpress, each deciding with its own code and its authors' defaults.

See https://github.com/NVIDIA/kvpress.
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
#: Scores that were computed for a prompt, by press and layer.
Scores = dict[tuple[str, Any], Tensor]


def _expected_attention(k: Any, ratio: float, **options: Any) -> Any:
    """With the epsilon that kvpress recommends where values of all heads are compared."""
    return k.ExpectedAttentionPress(ratio, epsilon=1e-2, **options)


def _compactor(k: Any, ratio: float, once: Once) -> Any:
    """Its two parts do not depend on the kept share, but their blend does."""
    press = k.CompactorPress(ratio)
    press._leverage_press = once(press._leverage_press)
    press._non_causal_press = once(press._non_causal_press)
    return press


#: Name, and what builds the press for a compression ratio.
PRESSES: dict[str, Callable[[Any, float, Once], Any]] = {
    "StreamingLLM": lambda k, ratio, once: k.StreamingLLMPress(ratio),
    "SnapKV": lambda k, ratio, once: once(k.SnapKVPress(ratio)),
    "PyramidKV": lambda k, ratio, once: once(k.PyramidKVPress(ratio)),
    "TOVA": lambda k, ratio, once: once(k.TOVAPress(ratio)),
    "KeyDiff": lambda k, ratio, once: once(k.KeyDiffPress(ratio)),
    "LagKV": lambda k, ratio, once: once(k.LagKVPress(ratio)),
    "CUR": lambda k, ratio, once: once(k.CURPress(ratio)),
    "Compactor": _compactor,
    "ExpectedAttention": lambda k, ratio, once: once(k.ExpectedAttentionPress(ratio)),
    "AdaKV SnapKV": lambda k, ratio, once: k.AdaKVPress(once(k.SnapKVPress(ratio))),
    "AdaKV ExpectedAttention": lambda k, ratio, once: k.AdaKVPress(
        once(_expected_attention(k, ratio))
    ),
    "AdaKV Compactor": lambda k, ratio, once: k.AdaKVPress(_compactor(k, ratio, once)),
    "CriticalAdaKV SnapKV": lambda k, ratio, once: k.CriticalAdaKVPress(once(k.SnapKVPress(ratio))),
    "CriticalAdaKV ExpectedAttention": lambda k, ratio, once: k.CriticalAdaKVPress(
        once(_expected_attention(k, ratio, use_vnorm=False))
    ),
}


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
    name: str, keep: float, model: Any, prefill: Prefill, scores: Scores
) -> list[list[Head]]:
    """Return what one press keeps of a prompt, ``[L][H]``.

    Args:
        name: one of :data:`PRESSES`.
        keep: kept share, in (0, 1).
        model: the transformers model that ran the prefill.
        scores: given to all calls for one prompt, spares scoring it anew.
    """

    def once(press: Any) -> Any:
        options = vars(press)
        said = {name: value for name, value in options.items() if name != "compression_ratio"}

        class ScoringOnce(type(press)):  # type: ignore[misc]
            def score(self, module: Any, *args: Any, **kwargs: Any) -> Tensor:
                key = (f"{type(press).__name__} {said}", module)
                if key not in scores:
                    scores[key] = super().score(module, *args, **kwargs)
                return scores[key].clone()  # AdaKV writes into them

        return ScoringOnce(**options)

    press = PRESSES[name](require_kvpress(), 1 - keep, once)
    press.post_init_from_model(model)
    heads = []
    for number, layer in enumerate(prefill.layers):
        module: Any = layer.module
        module.rotary_emb = model.model.rotary_emb
        module.masked_key_indices = None
        module.config.head_dim = module.head_dim  # Qwen2's configuration lacks it
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(number)  # Compactor draws a sketch
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
