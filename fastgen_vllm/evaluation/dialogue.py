"""What a model's chat template puts around messages."""

from typing import Any, NamedTuple

from fastgen_vllm.evaluation.texts import tokenize

_MARKS = ("<first message>", "<reply>", "<next message>")


class Dialogue(NamedTuple):
    """Token ids around a user's message, the reply to it, and the next message."""

    before: list[int]  # the first message
    after: list[int]  # a message, up to where the reply begins
    between: list[int] | None  # a reply, up to where the next message begins; None if that fails

    @classmethod
    def of(cls, tokenizer: Any) -> "Dialogue":
        """Take the template apart; a model without one gets plain questions and answers."""
        if tokenizer.chat_template is None:
            return cls([], tokenize(tokenizer, "\nAnswer: "), tokenize(tokenizer, "\n\n"))
        before, after = _written(tokenizer, 1).split(_MARKS[0])
        _, _, later = _written(tokenizer, 3).partition(_MARKS[1])
        between, written, _ = later.partition(_MARKS[2])
        return cls(
            tokenize(tokenizer, before),
            tokenize(tokenizer, after),
            tokenize(tokenizer, between) if written else None,
        )


def _written(tokenizer: Any, count: int) -> str:
    """What the template writes of that many messages, up to where a reply begins."""
    roles = ("user", "assistant", "user")
    messages = [{"role": r, "content": m} for r, m in zip(roles, _MARKS, strict=True)]
    text: str = tokenizer.apply_chat_template(
        messages[:count], add_generation_prompt=True, tokenize=False
    )
    return text
