"""The tokens of a prompt to profile, as in a request with this prompt, and their texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.renderers.inputs.preprocess import extract_prompt_components

from fastgen_vllm.api.schema import ProfileRequest

#: Tokens whose text may wait for that of a later one. A character has four bytes at most, and a
#: token a byte at least; a multiple of all lengths that a character can have.
_MOST_WAITING = 12
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt for the engine."""

    engine_input: Any  # what vLLM's renderer made for its engine
    tokens: list[int]
    texts: list[str]  # of the tokens; put together they are the text of the prompt


class Rendering:
    """The server's own rendering: its chat template, special tokens, limits.

    Args:
        renderer: vLLM's ``OnlineRenderer``, which its endpoints use too.
    """

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    async def render(self, request: ProfileRequest) -> RenderedPrompt:
        """Render a prompt as that of a request for one token.

        Raises:
            HTTPException, RequestValidationError, ValueError: what vLLM says of such a request.
        """
        tokenizer = self._renderer.renderer.get_tokenizer()
        engine_input = await (self._text if request.messages is None else self._chat)(request)
        components = extract_prompt_components(self._renderer.model_config, engine_input)
        tokens = list(components.token_ids or ())
        if not tokens:
            raise ValueError("prompt: has no tokens; give some text.")
        return RenderedPrompt(engine_input, tokens, token_texts(tokens, tokenizer.decode))

    async def _text(self, request: ProfileRequest) -> Any:
        asked = _validated(CompletionRequest, prompt=request.prompt, max_tokens=1)
        (engine_input,) = _checked(await self._renderer.render_completion(asked))
        return engine_input

    async def _chat(self, request: ProfileRequest) -> Any:
        messages = [message.model_dump(exclude_unset=True) for message in request.messages or ()]
        asked = _validated(ChatCompletionRequest, messages=messages, max_tokens=1)
        _, (engine_input,) = _checked(await self._renderer.render_chat(asked))
        return engine_input


def _validated(kind: type[BaseModel], **fields: Any) -> Any:
    """A request of vLLM's; what is wrong with it is told as vLLM tells it."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _checked(result: Any) -> Any:
    if isinstance(result, ErrorResponse):
        raise HTTPException(result.error.code, result.error.message)
    return result


def token_texts(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the texts of tokens, which put together are the text of all.

    A character may take several tokens: the one that completes it has it, those before have no
    text. Some tokenizers treat the first token of a text unlike others, so a text is always what a
    token adds to that of the tokens before it.

    Args:
        decode: the text of tokens that follow each other, with U+FFFD for what is incomplete.
    """
    texts = []
    start = told = 0  # tokens from `start` on are decoded; those below `told` have their text
    before = ""  # the text of tokens [start, told)
    for end in range(1, len(tokens) + 1):
        text = decode(tokens[start:end])
        if text.endswith(_INCOMPLETE) and end < min(told + _MOST_WAITING, len(tokens)):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, told = told, end
        before = decode(tokens[start:told])
    return texts
