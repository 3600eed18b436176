"""Texts of tokens: put together they are the text, whatever a token holds of a character."""

import pytest

from fastgen_vllm.api.rendering import token_texts
from tests.evaluation.tiny import tiny_tokenizer

TEXTS = [
    "",
    "plain words, 12",
    "Émile 🌶🪐 said: 今日は寒い、明日も寒い。 ภาษาไทย ที่บ้าน 👩‍🚀 naïve 𓀀𓀁 —",
    "<s>specials</s>",
    " blanks  \t\n ",
    "�, and � � ��",
    "�" * 1000 + "end",
]


@pytest.mark.parametrize("text", TEXTS)
def test_together_they_are_the_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer(text).input_ids
    texts = token_texts(tokens, tokenizer.decode)
    assert len(texts) == len(tokens)
    assert "".join(texts) == text
    assert "�" in text or not any("�" in piece for piece in texts)


def test_the_last_token_of_a_character_has_it() -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("a🪐").input_ids
    assert len(tokens) > 3
    texts = token_texts(tokens, tokenizer.decode)
    assert texts == ["a", *[""] * (len(tokens) - 2), "🪐"]


def test_what_never_becomes_a_character_is_told_in_the_end() -> None:
    tokenizer = tiny_tokenizer()
    half = tokenizer("🪐").input_ids[:2]
    assert token_texts(half, tokenizer.decode) == ["", "�"]


def test_a_long_text_is_decoded_in_short_pieces() -> None:
    """The work grows with the number of tokens, not with its square."""
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("�" * 2000).input_ids
    lengths = []

    def decode(piece: list[int]) -> str:
        lengths.append(len(piece))
        return str(tokenizer.decode(piece))

    assert "".join(token_texts(tokens, decode)) == "�" * 2000
    assert max(lengths) <= 24
