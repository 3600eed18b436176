"""vLLM's ``--config`` file, as far as we read it ourselves. Knows no vLLM."""

from pathlib import Path
from typing import Any

import yaml


def read_config_file(path: str) -> dict[str, Any]:
    """Return the options of a file, of an empty one none.

    Raises:
        ValueError: the file cannot be read, or is no mapping of options.
    """
    try:
        options = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: it is not valid YAML: {error}") from error
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ValueError(f"--config {path}: it must hold 'option: value' lines.")
    return {str(name): value for name, value in options.items()}
