"""FastGen for vLLM: every attention head keeps only the tokens it looks at.

Serve with ``fastgen-vllm serve``, or offline::

    from vllm import LLM
    import fastgen_vllm

    llm = LLM(model, **fastgen_vllm.llm_options("balanced", max_model_len=2048))
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("fastgen-vllm")
except PackageNotFoundError:  # imported from a source tree
    __version__ = "unknown"
__all__ = ["__version__", "llm_options"]


def llm_options(fastgen: str = "balanced", **engine_kwargs: Any) -> dict[str, Any]:
    """Return keyword arguments for ``vllm.LLM`` that turn FastGen on.

    On a CPU this also sets ``VLLM_USE_AOT_COMPILE=0`` and ``TORCHINDUCTOR_CACHE_DIR``, unless they
    are set: later starts find what the first compiled.

    Args:
        fastgen: a preset (``balanced``, ``paper``, ``full``), a path of a YAML file, or
            ``off`` for stock vLLM.
        engine_kwargs: your own arguments of ``vllm.LLM``. They stay as they are, except that
            lists and ``additional_config`` are joined with ours. Single options of the preset
            are changed by ``additional_config={"fastgen": {"recovery": 0.9}}``.

    Raises:
        ValueError: names the option, its value and the legal set.
    """
    from fastgen_vllm.server.arguments import merge_options, resolve_config

    config = resolve_config(fastgen, engine_kwargs.get("additional_config"))
    if config is None:
        return engine_kwargs
    from fastgen_vllm.integration.options import engine_options, keep_compiled

    keep_compiled()
    return merge_options(engine_kwargs, engine_options(config))
