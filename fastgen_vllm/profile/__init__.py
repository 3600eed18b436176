"""What the end of prefill tells about a prompt: attention mass and token classes."""

from fastgen_vllm.profile.prompt import PromptProfile
from fastgen_vllm.profile.tokens import token_class_table

__all__ = ["PromptProfile", "token_class_table"]
