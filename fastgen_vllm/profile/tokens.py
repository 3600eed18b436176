"""Which tokens are special and which are punctuation."""

import unicodedata
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastgen_vllm.geometry import TokenClass


def token_class_table(texts: Sequence[str], special_ids: Iterable[int]) -> Tensor:
    """Return [V] int32, the TokenClass bits of every token id.

    A token is punctuation when its decoded text, stripped of blanks, is not empty and all
    its characters are of a Unicode punctuation category. Special tokens are only special.

    Args:
        texts: decoded text of each token id, ``V`` of them.
        special_ids: ids that the tokenizer or the chat template uses as markers; ids
            outside the vocabulary are ignored.
    """
    table = torch.tensor(
        [TokenClass.PUNCTUATION if _is_punctuation(text) else TokenClass.PLAIN for text in texts],
        dtype=torch.int32,
    )
    for token_id in special_ids:
        if 0 <= token_id < len(texts):
            table[token_id] = TokenClass.SPECIAL
    return table


def _is_punctuation(text: str) -> bool:
    stripped = text.strip()
    return bool(stripped) and all(unicodedata.category(char)[0] == "P" for char in stripped)
