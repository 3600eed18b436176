"""What a client sees of the server, one feature at a time.

A case asks one thing and returns the answer without what differs from one request to the next. The
same list is asked of any server; see test_like_stock.py.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import httpx

MODEL = "smollm2-135m-instruct"
KEY = "secret"
#: of the server that is asked
FLAGS = (
    *("--api-key", KEY, "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--enable-prompt-tokens-details", "--scheduling-policy", "priority"),
)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SHORT = "Name the capital of France. It is"
#: some 700 tokens
LONG = " ".join(
    f"Day {day}: the {animal} walked {day * 37 % 11} miles and met {day * 23 % 7} friends."
    for day, animal in enumerate(("fox", "old bear", "grey cat", "heron", "snail") * 7)
)

Case = Callable[[httpx.Client], Any]
OfText = Callable[[str], Case]

_BY_CHANCE = {"id", "item_id", "created", "created_at", "completed_at", "system_fingerprint"}
#: FastGen computes the last tokens of a cached prompt again; see test_like_stock.py.
_OF_CACHE = {"cached_tokens", "created_cache_tokens", "cache_write_tokens"}
_OF_CACHE |= {"cache_creation_input_tokens", "cache_read_input_tokens"}
#: of a stream's events, put together
_PIECES = {"content", "text", "arguments", "reasoning"}


def request(method: str, path: str, body: Any = None, **options: Any) -> Case:
    """A case that sends one request."""

    def case(client: httpx.Client) -> Any:
        return answer_of(client.request(method, path, json=body, **options))

    return case


def chat(text: str, **body: Any) -> Case:
    """A case of one greedy turn."""
    messages = [{"role": "user", "content": text}]
    plain = {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0}
    return request("POST", CHAT, plain | body)


def complete(text: str | list[Any], **body: Any) -> Case:
    """A case of one greedy completion."""
    plain = {"model": MODEL, "prompt": text, "max_tokens": 8, "temperature": 0}
    return request("POST", COMPLETIONS, plain | body)


def of_chat(**body: Any) -> OfText:
    """`chat` that waits for its text."""
    return partial(chat, **body)


def of_completion(**body: Any) -> OfText:
    """`complete` that waits for its text."""
    return partial(complete, **body)


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """Status, content type and body; the events of a stream as one, beside their shapes."""
    kind = response.headers.get("content-type", "")
    answer: dict[str, Any] = {"status": response.status_code, "type": kind}
    if kind.startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in response.text.splitlines()]
        events = [_cleaned(json.loads(line)) for line in lines if line.startswith("{")]
        whole: Any = {}
        for event in events:
            whole = _joined(whole, event)
        names = [line for line in lines if line and not line.startswith("{")]
        return answer | {"body": whole, "events": shapes(events), "others": sorted(set(names))}
    if kind.startswith("application/json"):
        return answer | {"body": _cleaned(response.json())}
    return answer | {"body": response.text}


def shape(value: Any) -> Any:
    """Keys and types of an answer, whatever its text says."""
    if isinstance(value, list):
        return shapes(value)
    if not isinstance(value, dict):
        return type(value).__name__
    if value and all(isinstance(entry, float) for entry in value.values()):
        return "logprobs by token"
    return {key: shape(entry) for key, entry in value.items()}


def shapes(values: Iterable[Any]) -> list[Any]:
    """The different shapes of these values."""
    found = {json.dumps(shape(value), sort_keys=True) for value in values}
    return [json.loads(text) for text in sorted(found)]


def _cleaned(value: Any) -> Any:
    if isinstance(value, list):
        return [_cleaned(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        key: type(entry).__name__ if key in _BY_CHANCE | _OF_CACHE else _cleaned(entry)
        for key, entry in value.items()
    }


def _joined(whole: Any, piece: Any, key: str = "") -> Any:
    """Two events of a stream as one, so that it does not matter how it was cut."""
    if piece is None:
        return whole
    if isinstance(whole, dict) and isinstance(piece, dict):
        return whole | {name: _joined(whole.get(name), piece[name], name) for name in piece}
    if isinstance(whole, list) and isinstance(piece, list):
        if key not in ("choices", "tool_calls"):
            return whole + piece
        by_index = {entry["index"]: entry for entry in whole}
        by_index |= {
            entry["index"]: _joined(by_index.get(entry["index"]), entry) for entry in piece
        }
        return [by_index[index] for index in sorted(by_index)]
    if isinstance(whole, str) and isinstance(piece, str) and key in _PIECES:
        return whole + piece
    return piece


def _tokenized_and_back(client: httpx.Client) -> Any:
    tokens = client.post("/tokenize", json={"model": MODEL, "prompt": SHORT}).json()["tokens"]
    body = {"model": MODEL, "tokens": tokens}
    return [tokens, answer_of(client.post("/detokenize", json=body))]


def _stopped_at_a_token(client: httpx.Client, **body: Any) -> Any:
    found = client.post("/tokenize", json={"model": MODEL, "prompt": " of"}).json()["tokens"]
    return chat(SHORT, stop_token_ids=found, **body)(client)


_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {"name": "describe", "description": "Describe a city.", "parameters": _SCHEMA},
}
_JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": _SCHEMA}}
_NAMED = {"type": "function", "function": {"name": "describe"}}
_USAGE = {"include_usage": True}
_EACH_USAGE = {"include_usage": True, "continuous_usage_stats": True}
_DICE = {"temperature": 0.8, "seed": 7}

OF_BOTH_LENGTHS: dict[str, OfText] = {
    "chat": of_chat(max_tokens=24),
    "chat, streamed": of_chat(stream=True),
    "chat, logprobs": of_chat(logprobs=True, top_logprobs=3),
    "completion": of_completion(max_tokens=24, ignore_eos=True),
    "completion, streamed, usage": of_completion(stream=True, stream_options=_USAGE),
    "completion, logprobs": of_completion(logprobs=2),
    "completion, seed": of_completion(**_DICE),
    "completion, prompt logprobs": of_completion(prompt_logprobs=1, max_tokens=2),
    "n": of_completion(n=2, **_DICE),
    "tool, named": of_chat(tools=[_TOOL], tool_choice=_NAMED, max_tokens=30),
    "JSON schema": of_chat(response_format=_JSON_SCHEMA, max_tokens=30),
    "token ids": of_completion(return_token_ids=True),
}
OF_SHORT: dict[str, OfText] = {
    "chat, streamed, usage": of_chat(stream=True, stream_options=_USAGE),
    "chat, streamed, usage each": of_chat(stream=True, stream_options=_EACH_USAGE),
    "chat, streamed, logprobs": of_chat(stream=True, logprobs=True, top_logprobs=2),
    "chat, streamed, n": of_chat(stream=True, n=2, **_DICE),
    "chat, n": of_chat(n=2, **_DICE),
    "chat, seed": of_chat(**_DICE),
    "chat, max_completion_tokens": of_chat(max_completion_tokens=3),
    "chat, prompt logprobs": of_chat(prompt_logprobs=1),
    "chat, text of the prompt": of_chat(return_prompt_text=True),
    "chat, no generation prompt": of_chat(add_generation_prompt=False),
    "chat, template": of_chat(chat_template="{{ messages[0]['content'] }}"),
    "chat, own id": of_chat(request_id="mine"),
    "echo": of_completion(echo=True),
    "echo, logprobs": of_completion(echo=True, logprobs=1),
    "echo alone": of_completion(echo=True, max_tokens=0, logprobs=1),
    "streamed echo": of_completion(echo=True, stream=True),
    "completion, streamed, usage each": of_completion(stream=True, stream_options=_EACH_USAGE),
    "no tokens, chat": of_chat(max_tokens=0),
    "no tokens, completion": of_completion(max_tokens=0),
    "one token": of_chat(max_tokens=1),
    "more tokens than there is room": of_completion(max_tokens=2048),
    "negative tokens": of_chat(max_tokens=-1),
    "stop": of_chat(stop=[" France"]),
    "stop, included": of_chat(stop=" France", include_stop_str_in_output=True),
    "stop, streamed": of_chat(stop=[" France"], stream=True),
    "tokens that are not allowed": of_chat(bad_words=[" Paris"]),
    "tokens that are": of_chat(allowed_token_ids=[282, 253, 338]),
    "logit bias": of_chat(logit_bias={"282": 100}),
    "logit bias of no token": of_chat(logit_bias={"999999": 100}),
    "logit bias of no token, streamed": of_chat(logit_bias={"999999": 100}, stream=True),
    "penalties": of_completion(presence_penalty=1, frequency_penalty=1, repetition_penalty=1.2),
    "top_p, top_k and min_p": of_completion(top_p=0.9, top_k=20, min_p=0.05, **_DICE),
    "least tokens": of_chat(min_tokens=12, max_tokens=16),
    "no end": of_chat(ignore_eos=True, max_tokens=16),
    "special tokens": of_chat(skip_special_tokens=False, max_tokens=12),
    "priority": of_chat(priority=3),
    "beams": of_completion(use_beam_search=True, n=2, max_tokens=4),
    "JSON object": of_chat(response_format={"type": "json_object"}, max_tokens=24),
    "JSON schema, streamed": of_chat(response_format=_JSON_SCHEMA, max_tokens=30, stream=True),
    "JSON schema missing": of_chat(response_format={"type": "json_schema"}),
    "regex": of_chat(structured_outputs={"regex": "[0-9]{3}-[0-9]{2}"}),
    "regex that is none": of_chat(structured_outputs={"regex": "[0-9"}),
    "choice": of_completion(structured_outputs={"choice": ["red", "green"]}),
    "tool, required": of_chat(tools=[_TOOL], tool_choice="required", max_tokens=40),
    "tool, required, streamed": of_chat(
        tools=[_TOOL], tool_choice="required", max_tokens=40, stream=True
    ),
    "tool, auto": of_chat(tools=[_TOOL], tool_choice="auto"),
    "tool, none": of_chat(tools=[_TOOL], tool_choice="none"),
    "tool that is not there": of_chat(
        tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "other"}}
    ),
    "tools, but none": of_chat(tools=[]),
    "prompt cut": of_completion(truncate_prompt_tokens=4),
    "suffix": of_completion(suffix="."),
    "salt": of_completion(cache_salt="salt"),
    "usage of a stream that is none": of_chat(stream_options=_USAGE),
    "too many logprobs": of_chat(logprobs=True, top_logprobs=50),
    "logprobs of the wrong type": of_completion(logprobs="two"),
    "temperature of the wrong type": of_chat(temperature="hot"),
    "temperature below 0": of_chat(temperature=-1),
    "top_p above 1": of_completion(top_p=2),
    "n of 0": of_completion(n=0),
    "unknown model, chat": of_chat(model="other"),
    "unknown model, completion": of_completion(model="other"),
    "unknown field": of_chat(colour="red"),
    "arguments of others": of_chat(vllm_xargs={"other": [1, "a"]}),
    "arguments of the wrong type": of_chat(vllm_xargs="fastgen"),
}
_TURNS = [
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": SHORT},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": [{"type": "text", "text": "And of Italy?"}]},
]
_NO_KEY = {"Authorization": ""}
_WRONG_KEY = {"Authorization": "Bearer wrong"}
_OLD = {"role": "assistant", "content": "The capital"}
REST: dict[str, Case] = {
    "turns and system prompt": chat("", messages=_TURNS),
    "message continued": chat(
        "", messages=[_OLD], continue_final_message=True, add_generation_prompt=False
    ),
    "several prompts": complete([SHORT, "One, two,"], stream=True, stream_options=_USAGE),
    "prompts of tokens": complete([[500] * 5, [600] * 40]),
    "token that is none": complete([999999]),
    "negative token": complete([-1]),
    "empty prompt": complete(""),
    "no prompt": request("POST", COMPLETIONS, {"model": MODEL}),
    "prompt too long": complete([500] * 2100),
    "prompt too long, streamed": complete([500] * 2100, stream=True),
    "chat too long": chat(LONG * 4),
    "stop token": _stopped_at_a_token,
    "stop token, included": partial(_stopped_at_a_token, include_stop_str_in_output=True),
    "no messages": chat("", messages=[]),
    "messages of the wrong type": chat("", messages="Hello"),
    "message without content": chat("", messages=[{"role": "user"}]),
    "role that is none": chat("", messages=[{"role": "wizard", "content": "Hello"}]),
    "image": chat("", messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
    "no body": request("POST", CHAT),
    "body that is no JSON": request("POST", CHAT, content=b"{", headers={
        "Content-Type": "application/json"}),
    "body of another type": request("POST", CHAT, content=b"{}", headers={
        "Content-Type": "text/plain"}),
    "no key": request("GET", "/v1/models", headers=_NO_KEY),
    "wrong key": request("POST", CHAT, {"model": MODEL}, headers=_WRONG_KEY),
    "no key where none is needed": request("GET", "/version", headers=_NO_KEY),
    "models": request("GET", "/v1/models"),
    "one model": request("GET", f"/v1/models/{MODEL}"),
    "tokens and back": _tokenized_and_back,
    "tokens of a chat": request("POST", "/tokenize", {"model": MODEL, "messages": _TURNS}),
    "tokens of nothing": request("POST", "/tokenize", {"model": MODEL}),
    "version": request("GET", "/version"),
    "health": request("GET", "/health"),
    "ping": request("GET", "/ping"),
    "load": request("GET", "/load"),
    "embeddings": request("POST", "/v1/embeddings", {"model": MODEL, "input": SHORT}),
    "unknown route": request("GET", "/v1/nothing"),
    "wrong method": request("GET", CHAT),
    "responses": request("POST", "/v1/responses", {
        "model": MODEL, "input": SHORT, "max_output_tokens": 8, "temperature": 0}),
    "messages": request("POST", "/v1/messages", {
        "model": MODEL, "messages": _TURNS[1:2], "max_tokens": 8, "temperature": 0}),
}  # fmt: skip

LONG_REST: dict[str, Case] = {
    "several prompts": complete([SHORT, "One, two,", LONG]),
    "prompt and answer that just fit": complete([500] * 2044, max_tokens=4),
    "answer that does not": complete([500] * 2045, max_tokens=4),
}

#: prompts of less than 512 tokens, and some that are long enough to be compressed
SHORT_CASES = {name: case(SHORT) for name, case in (OF_BOTH_LENGTHS | OF_SHORT).items()} | REST
LONG_CASES = {name: case(LONG) for name, case in OF_BOTH_LENGTHS.items()} | LONG_REST
