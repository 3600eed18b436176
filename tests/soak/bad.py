"""Requests that must be refused."""

from random import Random

from tests.soak.answers import Json
from tests.soak.requests import Request, refused

PROMPT = "One, two,"
MESSAGES = [{"role": "user", "content": PROMPT}]

#: Bodies of every endpoint that takes arguments of ours in `vllm_xargs`.
WITH_ARGUMENTS: dict[str, Json] = {
    "/v1/completions": {"prompt": PROMPT},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/chat/completions/batch": {"messages": [MESSAGES]},
    "/v1/responses": {"input": PROMPT},
    "/invocations": {"prompt": PROMPT},
}
#: It takes them among its `sampling_params`; a server has it with `--enable-scale-out`.
GENERATE = "/inference/v1/generate"
PROFILE = "/fastgen/profile"

ARGUMENTS: tuple[Json, ...] = (
    {"fastgen": "sometimes"},
    {"fastgen": True},
    {"fastgen": 0},
    {"fastgen_report": "loud"},
    {"fastgen_recovery": 1.5},
    {"fastgen_recovery": "0.9"},
    {"fastgen_recovery": -1},
    {"fastgen_keep": 0},
    {"fastgen_keep": 10**400},
    {"fastgen_keep": 0.3, "fastgen_recovery": 0.9},
    {"fastgen_keep": 0.3, "fastgen_policy": "paper"},
    {"fastgen_keep_tokens": 0.5},
    {"fastgen_generated": "drop"},
    {"fastgen_generated": 1.5},
    {"fastgen_generated": 0.5, "fastgen_policy": "full"},
    {"fastgen_policy": "best"},
    {"fastgen_when": "now"},
    {"fastgen_keeps": 0.3},
)
#: What their errors speak of: the argument, or vLLM's field if the number is too large for it.
OURS = ("fastgen", "extra_args")
#: Mistakes that vLLM finds before it generates, and those that it finds then.
FIELDS: tuple[Json, ...] = (
    {"temperature": -1},
    {"temperature": "hot"},
    {"top_p": 2},
    {"n": 0},
    {"max_tokens": 0},
    {"model": "other"},
    {"prompt": ""},
    {"prompt": [500] * 5000},
    {"vllm_xargs": "fastgen"},
)
LATE_FIELDS: tuple[Json, ...] = (
    {"prompt": [999999]},
    {"logit_bias": {"999999": 1}},
    {"structured_outputs": {"regex": "[0-9"}},
)


def bad(random: Random, paths: frozenset[str], fastgen: bool) -> Request:
    """One of them; mistakes in arguments of ours only where FastGen reads them."""
    kinds = [field, no_json]
    if fastgen:
        kinds += [argument, argument]
        kinds += [profiled, scaled_out] if GENERATE in paths else [profiled]
    return random.choice(kinds)(random)


def field(random: Random) -> Request:
    """A field of OpenAI's API or vLLM's."""
    late = random.random() < 0.3
    wrong = random.choice(LATE_FIELDS if late else FIELDS)
    body = {"prompt": PROMPT, "max_tokens": 4, "stream": random.random() < 0.5, **wrong}
    return Request("bad field", "/v1/completions", body, refused(late))


def no_json(random: Random) -> Request:
    """A body that is none; one that is no text only where its error has OpenAI's shape."""
    path = random.choice(("/v1/completions", "/v1/chat/completions", PROFILE))
    bodies = [b"", b"{", b"[]"] + [b'{"prompt": "\xff"}'] * (path == PROFILE)
    return Request("no JSON", path, {}, refused(), raw=random.choice(bodies))


def argument(random: Random) -> Request:
    """An argument of ours, streamed or not: refused before a stream begins."""
    path = random.choice(list(WITH_ARGUMENTS))
    body = {**WITH_ARGUMENTS[path], "vllm_xargs": random.choice(ARGUMENTS)}
    if not path.endswith("/batch"):
        body["stream"] = random.random() < 0.5
    return Request("bad argument", path, body, refused(naming=OURS))


def profiled(random: Random) -> Request:
    """An argument of ours in a prompt to profile."""
    body = {"prompt": PROMPT, "arguments": random.choice(ARGUMENTS)}
    return Request("bad argument", PROFILE, body, refused(naming=OURS))


def scaled_out(random: Random) -> Request:
    """An argument of ours among parameters, with token ids instead of a prompt."""
    parameters = {"max_tokens": 4, "extra_args": random.choice(ARGUMENTS)}
    body = {"token_ids": [500] * 8, "sampling_params": parameters, "stream": random.random() < 0.5}
    return Request("bad argument", GENERATE, body, refused(naming=OURS))
