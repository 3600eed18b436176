"""What the endpoints below ``/fastgen`` take and return.

FastAPI renames both of two models of one name in ``/openapi.json``: no name here is one of vLLM's.
"""

from itertools import combinations
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from fastgen_vllm.config import GENERATED_WORDS, HAVE_BUDGET, NEED_BUDGET, PolicyName, When
from fastgen_vllm.request import (
    ENABLED,
    GENERATED,
    KEEP,
    KEEP_TOKENS,
    POLICY,
    PREFIX,
    RECOVERY,
    REPORT,
    SWITCH,
    WHEN,
)

Share = float  # from 0 to 1

_SHARE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
#: Some options are of these policies only.
_POLICIES: dict[str, tuple[str, ...]] = {
    KEEP: HAVE_BUDGET,
    KEEP_TOKENS: HAVE_BUDGET,
    GENERATED: ("coverage",),
}
#: What `RequestOptions` takes, for readers of the schema; it says itself what is wrong.
_ARGUMENTS: dict[str, Any] = {
    "properties": {
        ENABLED: {"enum": list(SWITCH)},
        REPORT: {"enum": list(SWITCH)},
        RECOVERY: _SHARE,
        KEEP: _SHARE,
        KEEP_TOKENS: {"type": "integer", "minimum": 1},
        GENERATED: {
            "anyOf": [
                {"enum": list(GENERATED_WORDS)},
                {"type": "number", "minimum": 0, "maximum": 1},
            ]
        },
        POLICY: {"enum": list(get_args(PolicyName))},
        WHEN: {"enum": list(get_args(When))},
    },
    "additionalProperties": False,
    "not": {
        "anyOf": [
            *({"required": list(two)} for two in combinations((RECOVERY, KEEP, KEEP_TOKENS), 2)),
            *(
                {"required": [option, POLICY], "properties": {POLICY: {"not": {"enum": legal}}}}
                for option, legal in _POLICIES.items()
            ),
            {
                "required": [POLICY],
                "properties": {POLICY: {"enum": NEED_BUDGET}},
                "not": {"anyOf": [{"required": [KEEP]}, {"required": [KEEP_TOKENS]}]},
            },
        ]
    },
}
#: One of the two; the other may be null.
_TEXT_OR_CHAT: list[Any] = [
    {"required": [one], "properties": {one: {"type": kind}, other: {"type": "null"}}}
    for one, kind, other in (("prompt", "string", "messages"), ("messages", "array", "prompt"))
]


class ErrorDetails(BaseModel):
    """What is wrong, as OpenAI's API tells it."""

    message: str
    type: str
    param: str | None = None
    code: int


class Error(BaseModel):
    """Body of an error."""

    error: ErrorDetails


class Pool(BaseModel):
    """vLLM's block pool."""

    blocks: int | None = Field(description="blocks of the pool; null until it is there")
    block_size: int = Field(description="tokens of a block")
    used_share: Share = Field(description="share of the blocks in use")
    running: int = Field(description="requests that are running")
    waiting: int = Field(description="requests that wait for room")


class Totals(BaseModel):
    """Counted since the server started."""

    compactions: int = Field(description="requests moved to per-head block tables")
    blocks_given_back: int = Field(description="blocks that compaction returned to the pool")
    kept_share: Share | None = Field(
        description="kept prompt tokens over prompt tokens, mean over profiled requests"
    )
    heads_by_policy: dict[str, int] = Field(description="heads by the policy chosen for them")
    uncompacted: dict[str, int] = Field(description="requests never compacted, by reason")
    preemptions: int
    profiling_seconds: float = Field(description="spent profiling and choosing")
    compaction_seconds: float = Field(description="spent copying kept tokens")


class Status(BaseModel):
    """What is active on this server."""

    active: bool = Field(description="whether FastGen is on")
    preset: str | None = Field(description="name of the preset or options; null if it is off")
    options: dict[str, Any] | None = Field(description="all FastGen options; null if it is off")
    model: str
    versions: dict[str, str] = Field(description="of fastgen-vllm, vllm and torch")
    pool: Pool
    totals: Totals


class Ready(BaseModel):
    """This server takes requests."""

    ready: Literal[True] = True


class RunningRequest(BaseModel):
    """A request that is running."""

    id: str
    prompt_tokens: int
    stored_tokens: int = Field(description="tokens, prompt and answer, that the model has seen")
    blocks: int = Field(description="blocks that it holds")
    blocks_shared: int = Field(
        description="the first ones of these that stayed at its compaction, as others read them too"
    )
    blocks_uncompressed: int = Field(description="blocks that so many tokens take in stock vLLM")
    compacted: bool = Field(description="whether it decodes over per-head block tables")
    kept_share: Share | None = Field(
        description="of its prompt, once it is compacted; null before that is planned"
    )
    policies: dict[str, int] = Field(description="heads by policy; empty before it is planned")


class Running(BaseModel):
    """All running requests."""

    requests: list[RunningRequest]


class Heads(BaseModel):
    """Means over all prompts profiled since the server started, per layer and head.

    Layers are those that own a KV cache, in order.
    """

    prompts: int = Field(description="profiled prompts")
    kept_share: list[list[Share]] = Field(description="[layer][KV head]; 0 without prompts")
    recovery: list[list[Share]] = Field(
        description="[layer][KV head], attention mass on kept tokens; 0 without prompts"
    )
    policies: dict[str, list[list[int]]] = Field(
        description="[layer][KV head], prompts for which a policy was chosen, by policy"
    )


class ProfileText(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ProfileMessage(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[ProfileText]


class ProfileRequest(BaseModel):
    """A prompt to profile, as text or as a chat, and `fastgen_*` arguments of a request."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"oneOf": _TEXT_OR_CHAT})

    prompt: str | None = Field(None, min_length=1, description="text, taken as it is")
    messages: list[ProfileMessage] | None = Field(
        None, min_length=1, description="a chat, put through the server's chat template"
    )
    arguments: dict[str, StrictStr | StrictInt | StrictFloat] = Field(
        {},
        description='as in "vllm_xargs", such as {"fastgen_recovery": 0.97}',
        json_schema_extra=_ARGUMENTS,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of the two")
        for name in self.arguments:
            if not name.startswith(PREFIX):
                raise ValueError(f"arguments: {name!r} is not one of the {PREFIX}_* arguments")
        return self


class ProfiledHead(BaseModel):
    """What was chosen for one head."""

    policy: str
    recovery: Share = Field(description="attention mass on kept tokens")
    kept: list[int] = Field(description="positions of kept prompt tokens, sorted")


class Profile(BaseModel):
    """How a prompt would be compressed."""

    prompt_tokens: int = Field(description="as in `usage` of a request with this prompt")
    uncompressed_because: str | None = Field(
        description="why a request with this prompt would not be compressed; null if it would"
    )
    kept_share: Share = Field(description="kept tokens over prompt tokens, mean over heads")
    tokens: list[str] = Field(
        description="the prompt's tokens as text; put together they are its text. Of tokens that "
        "are a character together the last one has it, the others are empty"
    )
    kept_by: list[int] = Field(
        description="for every token, how many heads keep it; empty like heads"
    )
    heads: list[list[ProfiledHead]] = Field(
        description="[layer][KV head], layers with a KV cache; empty if it is not compressed"
    )
