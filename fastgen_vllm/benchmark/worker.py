"""What measures, in a process of its own: ``python -m ...worker NAME SETTINGS FILE``.

Results go to a file because vLLM and its libraries print what they like.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fastgen_vllm.benchmark import batch, datasets, series
from fastgen_vllm.benchmark.results import SAMPLES, Sample


def main(arguments: Sequence[str]) -> int:
    """Run one measurement; a failure is told in a line."""
    name, settings, result = arguments
    try:
        Path(result).write_bytes(SAMPLES.dump_json(_measure(name, settings)))
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _measure(name: str, settings: str) -> list[Sample]:
    if name == "batch":
        return [batch.measure(batch.Settings.model_validate_json(settings))]
    if name == "series":
        return series.measure(series.Settings.model_validate_json(settings))
    assert name == "dataset", name
    datasets.write(datasets.Settings.model_validate_json(settings))
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
