"""Our options and the user's, made into one set of vLLM engine options. Knows no vLLM."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from fastgen_vllm.config import CONFIG_KEY, FastGenConfig, load_config, parse_config

OFF = "off"
ON = "on"
DEFAULT = "balanced"
#: Key, in a mapping of options, of the preset that they change.
PRESET = "preset"

#: Engine options whose values are ours or nobody's.
_OURS_ALONE = ("worker_cls", "scheduler_cls")
_NOT_GIVEN = (None, "auto")


def resolve_config(source: str, additional_config: Any = None) -> FastGenConfig | None:
    """Return the FastGen options that a user asked for, or None when FastGen is off.

    Args:
        source: preset, path of a YAML file, ``on`` (the default preset) or ``off``; or a mapping
            of options in YAML or JSON, which change the preset that its ``preset`` names, or the
            default one.
        additional_config: the user's own ``--additional-config``; single options in its
            ``fastgen`` entry go before those of ``source``.

    Raises:
        ValueError: names the option, its value and the legal set.
    """
    changes = _mapping(additional_config).get(CONFIG_KEY)
    preset, options = _preset_and_options(source)
    if preset == OFF:
        for option, value in ((f"additional-config.{CONFIG_KEY}", changes), ("fastgen", options)):
            if value:
                raise ValueError(
                    f"--{option}={value!r} contradicts --fastgen {OFF}. Drop one of the two."
                )
        return None
    config = load_config(preset or DEFAULT)
    if not isinstance(changes, dict | None):
        raise ValueError(
            f"--additional-config.{CONFIG_KEY}={changes!r}: must be a mapping of options. "
            f"Options: {', '.join(FastGenConfig.model_fields)}."
        )
    if not (options := _updated(options, changes or {})):
        return config
    named = {"name": f"{config.name} (changed)", **options}
    return parse_config(_updated(config.model_dump(mode="json"), named))


def added_source(before: str, given: str) -> str:
    """Return the one source that two stand for, of which ``given`` goes before the other.

    What names a preset stands alone; a mapping that names none changes what was there.

    Raises:
        ValueError: a mapping that cannot be read.
    """
    preset, options = _preset_and_options(given)
    if preset is not None:
        return given
    preset, changed = _preset_and_options(before)
    return json.dumps({PRESET: preset or DEFAULT} | _updated(changed, options))


def _preset_and_options(source: str) -> tuple[str | None, dict[str, Any]]:
    """What a source names, if it does, and the single options that it gives."""
    if source == ON:
        return DEFAULT, {}
    if not source.startswith("{"):
        return source, {}
    try:
        options = yaml.safe_load(source)
    except yaml.YAMLError as error:
        raise ValueError(f"--fastgen {source}: it is not a mapping of options: {error}") from error
    preset = options.pop(PRESET, None)
    if isinstance(preset, bool):  # as YAML reads `on` and `off`
        preset = DEFAULT if preset else OFF
    return None if preset is None else str(preset), options


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
