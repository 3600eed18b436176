"""Prompts: passages of the Python manual, the same for every side."""

import json
import random
from pathlib import Path
from typing import Any


def text_prompts(
    tokenizer: Any, count: int, length: int, seed: int, shared: int = 0
) -> list[list[int]]:
    """Cut ``count`` prompts of exactly ``length`` tokens, where the seed says.

    Args:
        shared: first tokens that are the same in all prompts.

    Raises:
        ValueError: the manual is not that long.
    """
    from pydoc_data.topics import topics

    tokens = tokenizer("\n\n".join(topics.values()), verbose=False).input_ids
    if length > len(tokens):
        raise ValueError(f"prompts of {length} tokens: the Python manual has {len(tokens)}.")
    dice = random.Random(seed)
    starts = [dice.randrange(len(tokens) - length + 1) for _ in range(count)]
    first = tokens[starts[0] : starts[0] + shared]
    return [first + tokens[start + shared : start + length] for start in starts]


def write_dataset(path: Path, tokenizer: Any, count: int, length: int, seed: int) -> None:
    """Write prompts as text, a JSON object a line, for vLLM's benchmark client.

    As text a prompt may have fewer tokens than ``length``, where its ends join; never more.
    """
    with path.open("w", encoding="utf-8") as file:
        for prompt in text_prompts(tokenizer, count, length, seed):
            text = tokenizer.decode(prompt)
            while len(tokenizer(text).input_ids) > length:
                prompt = prompt[:-1]
                text = tokenizer.decode(prompt)
            file.write(json.dumps({"prompt": text}) + "\n")
