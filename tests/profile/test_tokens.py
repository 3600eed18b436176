"""Token classes from decoded text."""

from pathlib import Path

from transformers import AutoTokenizer

from fastgen_vllm.geometry import TokenClass
from fastgen_vllm.profile import token_class_table


def test_classes() -> None:
    texts = [".", " ,", "a", "", " ", "?!", "。", "a.", "$", "<|end|>", ")", "'s"]
    table = token_class_table(texts, [9, 99, -1]).tolist()
    names = {texts[i]: TokenClass(code) for i, code in enumerate(table)}
    punctuation = [text for text, code in names.items() if code == TokenClass.PUNCTUATION]
    assert punctuation == [".", " ,", "?!", "。", ")"]
    assert names["<|end|>"] == TokenClass.SPECIAL
    assert names["$"] == TokenClass.PLAIN  # a symbol, not punctuation


def test_default_model(default_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    table = token_class_table(texts, tokenizer.all_special_ids)
    chat = tokenizer("<|im_start|>user\nHi, there!<|im_end|>").input_ids
    found = [(texts[i], TokenClass(int(table[i]))) for i in chat]
    assert [t for t, c in found if c == TokenClass.SPECIAL] == ["<|im_start|>", "<|im_end|>"]
    assert [t for t, c in found if c == TokenClass.PUNCTUATION] == [",", "!"]
