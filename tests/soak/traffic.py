"""A mixed load, drawn from a seeded generator: the same seed draws the same requests."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tests.soak.answers import Json
from tests.soak.bad import bad
from tests.soak.prose import WHAT, WHO, prose
from tests.soak.requests import Request, answered, fits_schema, has, structured

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
#: Prompts in sentences. The last are long enough to be compressed, and leave room for an answer.
SHORT, MIDDLE, LONG = (1, 6), (10, 32), (40, 54)
MOST_TOKENS = 240
#: A client hangs up in one request of so many, after up to so many seconds.
HANG_UP, PATIENCE = 0.15, 12.0

SCHEMA: Json = {
    "type": "object",
    "properties": {
        "who": {"type": "string", "enum": list(WHO)},
        "count": {"type": "integer", "minimum": 2, "maximum": 99},
        "what": {"type": "array", "items": {"enum": list(WHAT)}, "minItems": 1, "maxItems": 3},
        "note": {"type": "string", "maxLength": 20},
    },
    "required": ["who", "count", "what", "note"],
    "additionalProperties": False,
}
OF_SCHEMA = {"type": "json_schema", "json_schema": {"name": "found", "schema": SCHEMA}}
CODE = r"[A-Z]{3}-[0-9]{4}"

#: Arguments of a request.
OWN: tuple[Json, ...] = (
    {"fastgen": "off"},
    {"fastgen_recovery": 0.8},
    {"fastgen_recovery": 0.97, "fastgen_policy": "coverage"},
    {"fastgen_policy": "paper"},
    {"fastgen_policy": "full"},
    {"fastgen_keep": 0.2},
    {"fastgen_keep_tokens": 200},
    {"fastgen_when": "always"},
    {"fastgen_keep_tokens": 200, "fastgen_policy": "ahakv"},
    {"fastgen_keep": 0.4, "fastgen_generated": "keep"},
    {"fastgen_generated": "replace"},
    {"fastgen_generated": 0.25, "fastgen_report": "on"},
)


@dataclass(frozen=True)
class Load:
    """What is drawn from.

    Args:
        seed: of the generator.
        paths: that the server has.
        fastgen: whether it has FastGen on.
    """

    seed: int
    paths: frozenset[str]
    fastgen: bool

    def requests(self) -> Iterator[Request]:
        """Requests without end."""
        random = Random(self.seed)
        documents = [prose(random, random.randint(*LONG) - 8) for _ in range(3)]
        kinds: dict[Callable[[Random, list[str]], Request], int] = {
            chat: 5,
            completion: 5,
            structure: 3,
            beams: 1,
            one_token: 2,
            other_api: 1,
        }
        if self.fastgen:
            kinds[profile] = 1
        while True:
            if random.random() < 0.2:
                yield bad(random, self.paths, self.fastgen)
                continue
            (kind,) = random.choices(list(kinds), list(kinds.values()))
            drawn = kind(random, documents)
            if random.random() < HANG_UP:
                drawn = replace(drawn, patience=random.uniform(0, PATIENCE))
            yield drawn


def text(random: Random, documents: list[str]) -> str:
    """A prompt: short, of middle length, long, or a question on a document that others share."""
    sizes = (SHORT, MIDDLE, LONG, None)
    (size,) = random.choices(sizes, (4, 3, 3, 2))
    if size is None:
        return (
            f"{random.choice(documents)} {prose(random, 2)} What did the {random.choice(WHO)} do?"
        )
    return prose(random, random.randint(*size))


def sampling(random: Random) -> Json:
    """Some of the parameters that a request may have."""
    found: Json = {"max_tokens": random.choice((4, 16, 60, 120, MOST_TOKENS, MOST_TOKENS))}
    if random.random() < 0.6:
        found |= {"temperature": random.choice((0.3, 0.8, 1.2)), "top_p": random.choice((0.9, 1))}
        if random.random() < 0.6:
            found["seed"] = random.randrange(1000)
    else:
        found["temperature"] = 0
    maybe: tuple[tuple[float, Json], ...] = (
        (0.4, {"vllm_xargs": random.choice(OWN)}),
        (0.4, {"stream": True}),
        (0.5, {"ignore_eos": True}),
        (0.2, {"priority": random.randint(-1, 1)}),
        (0.1, {"presence_penalty": 0.5, "repetition_penalty": 1.1}),
        (0.1, {"stop": [" bridge", "\n\n"]}),
        (0.1, {"min_tokens": 3}),
        (0.1, {"top_k": 20, "min_p": 0.02}),
    )
    for chance, parameter in maybe:
        if random.random() < chance:
            found |= parameter
    return found


def choices(random: Random, sampled: Json) -> int:
    """How many to ask for; greedy ones would be the same."""
    return random.choice((1, 1, 1, 2, 3)) if sampled["temperature"] else 1


def chat(random: Random, documents: list[str]) -> Request:
    """Some turns."""
    turns = ["user", "assistant", "user"] if random.random() < 0.3 else ["user"]
    said = [prose(random, 2) for _ in turns[1:]]
    messages = [
        {"role": role, "content": content}
        for role, content in zip(turns, [text(random, documents), *said], strict=True)
    ]
    sampled = sampling(random)
    if random.random() < 0.1:
        sampled |= {"logprobs": True, "top_logprobs": 2}
    n = choices(random, sampled)
    body = {"messages": messages, "n": n, **sampled}
    return Request("chat", CHAT, body, answered(n), n)


def completion(random: Random, documents: list[str]) -> Request:
    """One prompt or two."""
    prompts = [text(random, documents) for _ in range(random.choice((1, 1, 1, 2)))]
    sampled = sampling(random)
    if random.random() < 0.1:
        sampled |= {"logprobs": 2}
    n = choices(random, sampled)
    total = n * len(prompts)
    body = {"prompt": prompts if len(prompts) > 1 else prompts[0], "n": n, **sampled}
    return Request("completion", COMPLETIONS, body, answered(total), total)


def structure(random: Random, documents: list[str]) -> Request:
    """An answer bound to a schema, a regular expression or a choice."""
    sampled = sampling(random)
    for unfit in ("stop", "ignore_eos", "min_tokens"):  # they break what binds
        sampled.pop(unfit, None)
    n = choices(random, sampled)
    messages = [{"role": "user", "content": f"{text(random, documents)} Describe one of them."}]
    bound: tuple[tuple[Json, Callable[[str], bool]], ...] = (
        ({"response_format": OF_SCHEMA}, fits_schema(SCHEMA)),
        ({"response_format": {"type": "json_object"}}, fits_schema({"type": "object"})),
        ({"structured_outputs": {"regex": CODE}}, lambda found: bool(re.fullmatch(CODE, found))),
        ({"structured_outputs": {"choice": list(WHO)}}, lambda found: found in WHO),
    )
    parameter, fits = random.choice(bound)
    body = {"messages": messages, "n": n, **sampled, **parameter}
    return Request("structure", CHAT, body, structured(n, fits), n)


def beams(random: Random, documents: list[str]) -> Request:
    """A beam search. After its first step each beam is a request in each step."""
    width, tokens = random.choice((2, 3)), random.choice((2, 4, 6))
    body = {
        "prompt": text(random, documents),
        "use_beam_search": True,
        "n": width,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    return Request("beams", COMPLETIONS, body, answered(width), 1 + width * (tokens - 1))


def one_token(random: Random, documents: list[str]) -> Request:
    """What scoring and classification ask."""
    body: Json = {"prompt": text(random, documents), "max_tokens": 1, "temperature": 0}
    body |= random.choice(({}, {"logprobs": 3}, {"prompt_logprobs": 1}, {"echo": True}))
    return Request("one token", COMPLETIONS, body, answered(1))


def other_api(random: Random, documents: list[str]) -> Request:
    """The other ways to ask for text."""
    message: dict[str, Any] = {"role": "user", "content": text(random, documents)}
    tokens = random.choice((4, 16, 40))
    if random.random() < 0.5:
        body: Json = {"input": [message], "max_output_tokens": tokens}
        judge = has(status=("completed", "incomplete"), output=...)
        return Request("responses", "/v1/responses", body, judge)
    body = {"messages": [[message], [message]], "max_tokens": tokens}
    return Request("batch", f"{CHAT}/batch", body, answered(2), 2)


def profile(random: Random, documents: list[str]) -> Request:
    """A prompt that is profiled: its request is ended after a token, and counts as none."""
    asked: Json = {"prompt": prose(random, random.randint(*LONG))}
    asked["arguments"] = random.choice(({}, {"fastgen_keep": 0.3}, {"fastgen_policy": "paper"}))
    return Request("profile", "/fastgen/profile", asked, has(prompt_tokens=..., heads=...), runs=0)
