"""Which layer reads whose K and V: the ``layer_types`` string of published checkpoints."""

import re
from dataclasses import dataclass
from functools import cached_property

MODEL_TYPE = "lckv-llama"  # of published configurations


@dataclass(frozen=True)
class LayerTypes:
    """For every layer, the layer whose K and V its queries attend to.

    Examples, of 6 layers:

    ======================  =====================================================================
    ``0_1_2_3_4_5``         an ordinary model: every layer reads its own
    ``0_4_4_4_4_5``         LCKV with two warm-up layers: 1 to 3 read layer 4, which comes later
    ``0_0_2_2_4_4``         CLA: every second layer reads the one before
    ``0s_1s_2s_3_3_3``      YOCO: sliding windows below, one layer's K and V above
    ``0_1_3_3_4_5``         LCKV in the middle ("sandwich")
    ======================  =====================================================================

    Source: arXiv 2410.14442, section 3.

    Attributes:
        sources: [layers], the layer read.
        sliding: [layers], whether attention has a sliding window.
    """

    sources: tuple[int, ...]
    sliding: tuple[bool, ...]

    @classmethod
    def parse(cls, text: str, num_layers: int) -> "LayerTypes":
        """Read a string such as ``0_2_2_3s``.

        Raises:
            ValueError: says which entry is wrong, and why.
        """
        entries = text.split("_")
        if len(entries) != num_layers:
            raise ValueError(
                f"layer_types={text!r} has {len(entries)} entries, the model {num_layers} layers; "
                "one for each is needed, such as " + "_".join(map(str, range(num_layers)))
            )
        sources, sliding = [], []
        for layer, entry in enumerate(entries):
            match = re.fullmatch(r"(\d+)(s?)", entry)
            if match is None or int(match[1]) >= num_layers:
                raise ValueError(
                    f"layer_types={text!r}: entry {entry!r} of layer {layer} must be a layer from "
                    f"0 to {num_layers - 1}, with s behind it for a sliding window"
                )
            sources.append(int(match[1]))
            sliding.append(bool(match[2]))
        for layer, source in enumerate(sources):
            if sources[source] != source:
                raise ValueError(
                    f"layer_types={text!r}: layer {layer} reads layer {source}, which has no K and "
                    f"V of its own but reads layer {sources[source]}"
                )
        return cls(tuple(sources), tuple(sliding))

    def owns(self, layer: int) -> bool:
        """Whether a layer computes and keeps K and V."""
        return self.sources[layer] == layer

    def looks_up(self, layer: int) -> bool:
        """Whether a layer reads one above it, whose K and V of the same token are not there yet."""
        return self.sources[layer] > layer

    @property
    def owners(self) -> list[int]:
        """Layers that own K and V."""
        return [layer for layer in range(len(self.sources)) if self.owns(layer)]

    @cached_property
    def cycle(self) -> range:
        """Layers that a prompt passes several times: from the first that looks up to the last read.

        Empty if no layer looks up.
        """
        looking = [layer for layer in range(len(self.sources)) if self.looks_up(layer)]
        if not looking:
            return range(0)
        return range(looking[0], max(self.sources[layer] for layer in looking) + 1)
