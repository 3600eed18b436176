"""Names of Prometheus metrics, by the sources that define them."""

import re
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = ("_total", "_sum", "_count", "_bucket")


def defined_metrics() -> set[str]:
    """Ours and vLLM's, without suffixes."""
    vllm = find_spec("vllm")
    assert vllm is not None and vllm.origin is not None
    theirs = (Path(vllm.origin).parent / "v1/metrics/loggers.py").read_text()
    ours = (ROOT / "fastgen_vllm/integration/metrics.py").read_text()
    return set(re.findall(r'"(vllm:\w+)"', theirs)) | set(re.findall(r'"(fastgen_\w+)"', ours))


def metrics_in(expression: str) -> set[str]:
    """What an expression asks for."""
    return set(re.findall(r"\b(?:vllm:|fastgen_)\w+", expression))


def base_of(metric: str) -> str:
    """A metric's name without the suffix that Prometheus hangs on."""
    return next((metric.removesuffix(end) for end in SUFFIXES if metric.endswith(end)), metric)
