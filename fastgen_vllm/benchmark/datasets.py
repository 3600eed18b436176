"""A worker that writes the prompts of ``serve`` to a file."""

from pathlib import Path

from pydantic import BaseModel

from fastgen_vllm.benchmark.prompts import write_dataset
from fastgen_vllm.models.tokenizer import load_tokenizer


class Settings(BaseModel):
    """Prompts for vLLM's benchmark client."""

    path: Path
    model: str
    num_requests: int
    prompt_len: int
    seed: int


def write(settings: Settings) -> None:
    """Write the file."""
    write_dataset(
        settings.path,
        load_tokenizer(settings.model),
        settings.num_requests,
        settings.prompt_len,
        settings.seed,
    )
