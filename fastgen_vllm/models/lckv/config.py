"""The configuration of published checkpoints (``model_type: lckv-llama``)."""

from typing import Any

from transformers import AutoConfig, LlamaConfig

from fastgen_vllm.models.lckv.layer_types import MODEL_TYPE, LayerTypes


class LCKVLlamaConfig(LlamaConfig):
    """A Llama's configuration and what arXiv 2405.10637 adds.

    ``layer_types`` is a string in checkpoints. Everybody else takes an attribute of that name for a
    list of attention kinds, so here it is ``kv_layers``.

    Args:
        layer_types: see :class:`LayerTypes`; None: every layer reads its own K and V.
        forward_passes, backward_passes: their sum is how often a prompt passes the cycle of layers
            (``m`` and ``b`` of the paper, with and without gradient in training).
        sliding_window: tokens that layers with a sliding window see.
        force_nodiag: no layer's token attends to itself, not even where its K and V are there.

    Raises:
        ValueError: names the option, its value and what is wrong.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        layer_types: str | None = None,
        forward_passes: int = 7,
        backward_passes: int = 2,
        sliding_window: int | None = None,
        force_nodiag: bool = False,
        **llama: Any,
    ) -> None:
        super().__init__(**llama)
        own = "_".join(map(str, range(self.num_hidden_layers)))
        self.kv_layers = layer_types or llama.get("kv_layers") or own
        self.forward_passes = forward_passes
        self.backward_passes = backward_passes
        self.lckv_window = sliding_window or llama.get("lckv_window")
        self.force_nodiag = force_nodiag
        types = self.parsed_layers
        if any(types.sliding) and self.lckv_window is None:
            raise ValueError(
                f"layer_types={self.kv_layers!r} needs sliding_window, a number of tokens"
            )
        if types.cycle and self.passes < 1:
            raise ValueError(
                f"forward_passes={forward_passes} and backward_passes={backward_passes} must make "
                "at least one pass"
            )

    def to_dict(self) -> dict[str, Any]:
        """The published form."""
        options: dict[str, Any] = super().to_dict()
        options["layer_types"] = options.pop("kv_layers", None)
        options["sliding_window"] = options.pop("lckv_window", None)
        return options

    @property
    def parsed_layers(self) -> LayerTypes:
        """Who reads whom."""
        return LayerTypes.parse(self.kv_layers, self.num_hidden_layers)

    @property
    def passes(self) -> int:
        """How often a prompt passes the cycle."""
        return int(self.forward_passes + self.backward_passes)


def register_config() -> None:
    """Make transformers read configurations of this type."""
    AutoConfig.register(LCKVLlamaConfig.model_type, LCKVLlamaConfig, exist_ok=True)
