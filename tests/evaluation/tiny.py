"""A small random model with a tokenizer of its own, and texts that a test can afford."""

import inspect
import mailbox
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.integration.tiny import VOCAB, save_tiny_llama

MANUAL = "\n\n".join(topics.values())  # 0.6 million characters
CODE = inspect.getsource(mailbox)

#: Ids 0 to 4; the model's configuration knows 1 and 2.
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def save_tiny_chat(directory: Path) -> Path:
    """The random Llama of the engine's tests, with a tokenizer and a chat template."""
    tiny_tokenizer(CHAT_TEMPLATE).save_pretrained(directory)
    return save_tiny_llama(directory)


def save_tiny_base(directory: Path) -> Path:
    """The same without a chat template."""
    tiny_tokenizer().save_pretrained(directory)
    return save_tiny_llama(directory)


def tiny_tokenizer(
    chat_template: str | None = None, *, lone_digits: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens.

    Args:
        chat_template: Jinja text; None for a model that is no chat model.
        lone_digits: every digit is a token of its own, and so is the blank before a number;
            else digits merge with each other and with the blank.
    """
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(lone_digits)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    made.chat_template = chat_template
    return made


@cache
def _trained(lone_digits: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, by_byte]) if lone_digits else by_byte
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = " ".join(map(str, range(10_000, 90_000, 37)))  # the manual has few
    tokenizer.train_from_iterator([MANUAL[:200_000], numbers], trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    text: str = tokenizer.to_str()
    return text
