"""Entry point ``vllm.general_plugins``: loaded in every process, active or not."""

#: Architectures of ours, by their modules below ``fastgen_vllm.models``.
_MODELS = {"lckv.model": "LCKVLlamaForCausalLM", "finalists": "FinalistsLlamaForCausalLM"}


def register() -> None:
    """Make vLLM understand our cache spec, and models of ours by their names.

    Nothing else happens until a worker or scheduler of ours is chosen, so an installed
    plugin that is off costs nothing.
    """
    from vllm import ModelRegistry

    from fastgen_vllm.integration.cache import register_spec
    from fastgen_vllm.models.lckv.config import register_config

    register_spec()
    register_config()
    for module, name in _MODELS.items():
        ModelRegistry.register_model(name, f"fastgen_vllm.models.{module}:{name}")
