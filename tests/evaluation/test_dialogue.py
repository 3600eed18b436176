"""A chat template taken apart."""

from fastgen_vllm.evaluation.dialogue import Dialogue
from tests.evaluation.tiny import CHAT_TEMPLATE, tiny_tokenizer


def test_a_dialogue_is_what_the_template_writes() -> None:
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE)
    before, after, between = Dialogue.of(tokenizer)
    assert between is not None
    texts = ["What now?", "Nothing.", "And then?"]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    roles = ["user", "assistant", "user"]
    messages = [{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)]

    def whole(count: int) -> list[int]:
        written: list[int] = tokenizer.apply_chat_template(
            messages[:count], add_generation_prompt=True, return_dict=False
        )
        return written

    assert [*before, *ids[0], *after] == whole(1)
    assert [*before, *ids[0], *after, *ids[1], *between, *ids[2], *after] == whole(3)


def test_a_model_without_template_gets_a_plain_question() -> None:
    tokenizer = tiny_tokenizer()
    dialogue = Dialogue.of(tokenizer)
    assert dialogue.before == []
    assert tokenizer.decode(dialogue.after) == "\nAnswer: "
    assert dialogue.between is not None and tokenizer.decode(dialogue.between) == "\n\n"


def test_a_template_may_know_one_turn_only() -> None:
    tokenizer = tiny_tokenizer("<|user|>{{ messages[0].content }}<|assistant|>")
    dialogue = Dialogue.of(tokenizer)
    assert tokenizer.decode(dialogue.before + dialogue.after) == "<|user|><|assistant|>"
    assert dialogue.between is None
