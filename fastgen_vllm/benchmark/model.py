"""The model to measure with: what its configuration says, before any engine is started."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastgen_vllm.models.lckv.layer_types import MODEL_TYPE as LCKV
from fastgen_vllm.models.lckv.layer_types import LayerTypes


class Model(NamedTuple):
    """A model that can be loaded."""

    name: str  # for people
    path: str  # directory or hub name
    max_len: int | None  # most tokens of a request, if the configuration says
    bytes_per_token: int | None  # of KV cache, if the configuration says


#: The model of every side, by the engine's name.
Models = Mapping[str, Model]


def find_model(option: str | None, dtype: str) -> Model:
    """Return the model of ``--model``; None is the embedded one.

    Args:
        option: directory or hub name.
        dtype: of the KV cache; ``auto`` is one of two bytes.

    Raises:
        ValueError: there is no such model, or its configuration cannot be read.
    """
    if option is None:
        # Late: without it the kernels can be measured where nothing is that converts a model.
        from fastgen_vllm.models.embedded import MODEL_NAME, ensure_default_model

        path = ensure_default_model()
        return _described(f"{MODEL_NAME} (embedded)", str(path), _read(MODEL_NAME, path), dtype)
    path = Path(option).expanduser()
    if path.is_dir():
        return _described(option, str(path), _read(option, path), dtype)
    if path.exists() or option.startswith((".", "/", "~")):
        raise ValueError(f"--model {option}: there is no such directory.")
    return _described(option, option, _from_hub(option), dtype)


def _read(option: str, directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {option}: cannot read its config.json: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--model {option}: its config.json holds no options.")
    return found


def _from_hub(name: str) -> dict[str, Any]:
    from transformers import AutoConfig

    from fastgen_vllm.models.lckv.config import register_config

    register_config()
    try:
        options: dict[str, Any] = AutoConfig.from_pretrained(name).to_dict()
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(f"--model {name}: no directory and not to be had: {line}") from None
    return options


def _kv_layers(text: dict[str, Any]) -> int:
    """Layers that have a KV cache: all, but of a layer-condensed model those that own K and V."""
    num_layers: int = text["num_hidden_layers"]
    if text.get("model_type") != LCKV:
        return num_layers
    return len(LayerTypes.parse(text["layer_types"], num_layers).owners)


def _described(name: str, path: str, config: dict[str, Any], dtype: str) -> Model:
    text = config.get("text_config") or config
    max_len = text.get("max_position_embeddings")
    try:
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        kv_bytes = 2 * _kv_layers(text) * heads * size * (4 if dtype == "float32" else 2)
    except (KeyError, TypeError):
        kv_bytes = None
    return Model(name, path, max_len if isinstance(max_len, int) else None, kv_bytes)
