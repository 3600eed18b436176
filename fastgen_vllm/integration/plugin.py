"""Entry point ``vllm.general_plugins``: loaded in every process, active or not."""


def register() -> None:
    """Make vLLM's cache configuration understand our spec.

    Nothing else happens until a worker or scheduler of ours is chosen, so an installed
    plugin that is off costs nothing.
    """
    from fastgen_vllm.integration.cache import register_spec

    register_spec()
