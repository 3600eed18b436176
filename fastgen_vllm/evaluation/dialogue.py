"""What a model's chat template puts around messages."""

from typing import Any, NamedTuple

from fastgen_vllm.evaluation.texts import tokenize

_MARKS = ("<first message>", "<reply>", "<next message>")


class Dialogue(NamedTuple):
    """Token ids around a user's message, the reply to it, and the next message."""

    before: list[int]  # the first message
    after: list[int]  # a message, up to where the reply begins
    between: list[int]  # a reply, up to where the next message begins

    @classmethod
    def of(cls, tokenizer: Any) -> "Dialogue":
        """Take the template apart; a model without one gets plain questions and answers.

        Raises:
            ValueError: the template does not write what it is given.
        """
        if tokenizer.chat_template is None:
            return cls([], tokenize(tokenizer, "\nAnswer: "), tokenize(tokenizer, "\n\n"))
        roles = ("user", "assistant", "user")
        messages = [{"role": r, "content": m} for r, m in zip(roles, _MARKS, strict=True)]
        rest: str = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        parts = []
        for mark in _MARKS:
            part, found, rest = rest.partition(mark)
            if not found:
                raise ValueError(
                    "--model: its chat template cannot write a conversation of two turns; "
                    "run with --protocols continuation."
                )
            parts.append(tokenize(tokenizer, part))
        # The first reply may begin otherwise than the one that is asked for.
        return cls(parts[0], tokenize(tokenizer, rest), parts[2])
