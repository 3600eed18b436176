"""Our options and the user's, made into one set of vLLM engine options. Knows no vLLM."""

from collections.abc import Mapping
from typing import Any

from fastgen_vllm.config import CONFIG_KEY, FastGenConfig, load_config, parse_config

OFF = "off"
DEFAULT = "balanced"

#: Engine options whose values are ours or nobody's.
_OURS_ALONE = ("worker_cls", "scheduler_cls")
_NOT_GIVEN = (None, "auto")


def resolve_config(source: str, additional_config: Any = None) -> FastGenConfig | None:
    """Return the FastGen options that a user asked for, or None when FastGen is off.

    Args:
        source: preset, path of a YAML file, or ``off``.
        additional_config: the user's own ``--additional-config``; single options in its
            ``fastgen`` entry go before those of ``source``.

    Raises:
        ValueError: names the option, its value and the legal set.
    """
    changes = _mapping(additional_config).get(CONFIG_KEY)
    if source == OFF:
        if changes is not None:
            raise ValueError(
                f"--additional-config.{CONFIG_KEY}={changes!r} contradicts --fastgen {OFF}. "
                "Drop one of the two."
            )
        return None
    config = load_config(source)
    if changes is None:
        return config
    if not isinstance(changes, dict):
        raise ValueError(
            f"--additional-config.{CONFIG_KEY}={changes!r}: must be a mapping of options. "
            f"Options: {', '.join(FastGenConfig.model_fields)}."
        )
    named = {"name": f"{config.name} (changed)", **changes}
    return parse_config(_updated(config.model_dump(mode="json"), named))


def merge_options(given: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` engine options with ours added.

    Lists are joined, mappings updated; of the rest, what the user gave stays.

    Raises:
        ValueError: ``given`` names a class where FastGen needs its own.
    """
    for option in _OURS_ALONE:
        if given.get(option) not in _NOT_GIVEN:
            raise ValueError(
                f"--{option.replace('_', '-')}={given[option]!r} cannot be combined with FastGen, "
                f"which brings its own. Drop it, or use --fastgen {OFF}."
            )
    merged = dict(given)
    for option, value in ours.items():
        theirs = given.get(option)
        if theirs in _NOT_GIVEN:
            merged[option] = value
        elif isinstance(value, dict):
            merged[option] = {**_mapping(theirs), **value}
        elif isinstance(value, list):
            merged[option] = [*value, *theirs]
    return merged


def _mapping(additional_config: Any) -> dict[str, Any]:
    if additional_config is None:
        return {}
    if isinstance(additional_config, dict):
        return additional_config
    raise ValueError(
        f'--additional-config={additional_config!r}: must be a mapping, as {{"option": "value"}}.'
    )


def _updated(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``options`` with ``changes``, nested mappings changed entry by entry."""
    updated = dict(options)
    for name, value in changes.items():
        old = updated.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            updated[name] = _updated(old, value)
        else:
            updated[name] = value
    return updated
