"""Start an LCKV model from an ordinary Llama's weights, as the authors do before they train on.

    python examples/convert_lckv.py MODEL OUT --layer-types 0_28_28_..._28_29

Layers that read another layer's K and V lose their projections of these; everything else stays.
Until it is trained on, such a model writes nonsense. Source: arXiv 2405.10637, section 3.3.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from fastgen_vllm.models.lckv.config import LCKVLlamaConfig


def main() -> None:
    """Convert a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="directory of a Llama with safetensors")
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--layer-types", help="default: all but the first and the last two layers "
                        "read the last but one")  # fmt: skip
    parser.add_argument("--forward-passes", type=int, default=7)
    parser.add_argument("--backward-passes", type=int, default=2)
    options = parser.parse_args()
    ordinary = AutoConfig.from_pretrained(options.model).to_dict()
    if ordinary["model_type"] != "llama":
        parser.error(
            f"MODEL={options.model} is a {ordinary['model_type']}; only llama can start one"
        )
    last = ordinary["num_hidden_layers"] - 1
    default = "_".join(map(str, [0, *[last - 1] * (last - 1), last]))
    for name in ("model_type", "architectures", "layer_types", "sliding_window", "_name_or_path"):
        ordinary.pop(name, None)
    try:
        config = LCKVLlamaConfig(
            layer_types=options.layer_types or default,
            forward_passes=options.forward_passes,
            backward_passes=options.backward_passes,
            architectures=["LCKVLlamaForCausalLM"],
            **ordinary,
        )
    except ValueError as error:
        parser.error(str(error))
    types = config.parsed_layers
    weights = {}
    for file in sorted(options.model.glob("*.safetensors")):
        weights |= load_file(file)
    dropped = [
        f"model.layers.{layer}.self_attn.{name}"
        for layer in range(last + 1)
        if not types.owns(layer)
        for name in ("k_proj", "v_proj")
    ]
    kept = {k: w for k, w in weights.items() if k.rpartition(".")[0] not in dropped}
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(kept, options.out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(options.out)
    for pattern in ("tokenizer*", "special_tokens_map.json", "generation_config.json", "chat_*"):
        for file in options.model.glob(pattern):
            shutil.copy(file, options.out)
    print(f"{options.out}: {len(types.owners)} of {last + 1} layers own K and V")


if __name__ == "__main__":
    main()
