"""The one configuration: pydantic model, YAML presets, command line and engine share it."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

PolicyName = Literal["paper", "coverage", "full", "ahakv"]
Rung = Literal["special", "punctuation", "frequent", "local"]
Pool = Literal["mean", "max", "min"]
DecodeKernel = Literal["fastgen", "stock", "xformers"]
When = Literal["short", "always"]

#: Policies that keep a share or a number of tokens, and those that know no recovery.
HAVE_BUDGET: Final = ("coverage", "ahakv")
NEED_BUDGET: Final = ("ahakv",)
#: How a policy of the user's own is named: ``package.module:Class``.
_IMPORT_PATH: Final = re.compile(r"[\w.]+:\w+")

#: Key of our options inside vLLM's ``additional_config``.
CONFIG_KEY = "fastgen"
PRESET_DIR = Path(__file__).parent / "presets"


def _parse_observe(value: object) -> object:
    """Accept ``256``, ``"last 256"`` and words; return an int or the word."""
    if isinstance(value, str):
        text = value.strip().lower().removeprefix("last").strip()
        return int(text) if text.isdigit() else text
    return value


#: Words for shares of generated tokens.
GENERATED_WORDS: Final = {"keep": 1.0, "replace": 0.0}


def _parse_generated(value: object) -> object:
    """Accept the words for shares; return the share."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or value not in GENERATED_WORDS:
        words = " or ".join(map(repr, GENERATED_WORDS))
        raise ValueError(f"use {words}, or a number from 0 to 1")
    return GENERATED_WORDS[value]


def _read_weights(value: object) -> object:
    """Read the rows of a file; rows that are given themselves, as an engine gets them, stay."""
    if not isinstance(value, str):
        return value
    path = Path(value)
    if not path.is_file():
        raise ValueError("no such file; give the path of a YAML or JSON file")
    try:
        read = json.loads if path.suffix == ".json" else yaml.safe_load
        return read(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"it is neither YAML nor JSON: {error}") from error


def _check_rows(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(f"give every layer a row of one number per KV head, not rows of {lengths}")
    return rows


#: [L][H], from a file's path. Wherever the configuration goes after that, it has the numbers.
HeadWeights = Annotated[
    tuple[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], ...],
    BeforeValidator(_read_weights),
    AfterValidator(_check_rows),
]
Observe = Annotated[
    Literal["all", "replay", "exact replay"] | Annotated[int, Field(ge=1)],
    BeforeValidator(_parse_observe),
]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PaperOptions(_Options):
    """Ratios of the paper's ladder (arXiv 2310.01801, section 3)."""

    local: float = Field(0.3, gt=0, le=1, description="r_l: recent share of the prompt")
    frequent: float = Field(
        0.3, gt=0, le=1, description="r_f: heavy-hitter share of the current length"
    )
    without: tuple[Rung, ...] = Field((), description="rungs to leave out, to see what they gain")


class CoverageOptions(_Options):
    """Options of the ``coverage`` policy."""

    recent: float = Field(0.1, ge=0, le=1, description="share of kept tokens that are recent")
    sinks: int = Field(4, ge=0, description="first tokens of the prompt, always kept")
    least: float = Field(
        0, ge=0, le=1, description="kept share of the prompt that `recovery` does not go below"
    )
    generated: Annotated[float, BeforeValidator(_parse_generated)] = Field(
        0,
        ge=0,
        le=1,
        description="slots that a head gains for every generated token: keep (1), all stay; "
        "replace (0), they replace the least valued ones; or a share, rounded up to 1/2, 1/3, ...",
    )


class FastGenConfig(_Options):
    """Options of FastGen compression.

    Unknown keys raise. Read from YAML by :func:`load_config` and carried to the
    engine in vLLM's ``additional_config["fastgen"]``.
    """

    name: str = Field("custom", description="shown in the start-up line")
    policy: PolicyName | str = Field(
        "coverage",
        description="how kept tokens are chosen: paper, coverage, full, ahakv, or by a class of "
        "your own, package.module:Class",
    )
    recovery: float = Field(
        0.95, gt=0, le=1, description="share of attention mass that kept tokens must hold (T)"
    )
    keep: float | None = Field(
        None,
        gt=0,
        le=1,
        description="kept share of the prompt, in place of recovery; policies coverage and ahakv",
    )
    keep_tokens: int | None = Field(
        None,
        ge=1,
        validate_default=True,
        description="tokens of the prompt that a head keeps, on average over heads, in place of "
        "keep: all of a prompt that has no more; policies coverage and ahakv",
    )
    head_weights: HeadWeights | None = Field(
        None,
        description="path of a YAML or JSON file: a row for each layer, in it a number above 0 "
        "for each KV head, by which the importance of the head's tokens is multiplied; not for "
        "paper, full and ahakv",
    )
    recovery_norm: Literal["mass", "l1"] = Field(
        "mass", description="mass: recovery >= T; l1: the paper's bound read as L1, >= (1+T)/2"
    )
    observe: Observe = Field(
        "replay",
        description="prompt queries profiled: 'last N' or 'all', as they were; or 'replay', all of "
        "them as if they were asked again from behind the prompt ('exact replay': their sums "
        "are over all keys, not over every 16th). Policy ahakv has its own",
    )
    min_prompt: int = Field(
        0, ge=0, description="prompts of fewer tokens are served uncompressed, answers included"
    )
    min_answer: int = Field(
        16,
        ge=1,
        description="requests that can answer fewer tokens (max_tokens, the model's length) are "
        "served uncompressed",
    )
    when: When = Field(
        "short",
        description="compact when running and waiting requests need more blocks than are free "
        "('short': until then they are served as stock serves them), or 'always', as soon as a "
        "prompt is whole and blocks come back",
    )
    shared_prefix: Literal["keep", "compress"] = Field(
        "keep",
        description="first blocks of a prompt that other requests read, too: 'keep' them as they "
        "are, held once for all, or 'compress' a copy for each",
    )
    pool: Pool = Field(
        "mean", description="how the query heads of one KV head share attention mass"
    )
    paper: PaperOptions = PaperOptions()
    coverage: CoverageOptions = CoverageOptions()
    decode_kernel: DecodeKernel = Field(
        "fastgen",
        description="what attends to compacted heads: fastgen; stock, vLLM's kernel over single "
        "heads; xformers, its paged attention (CUDA). The last two are slower cross-checks",
    )
    log_requests: bool = Field(
        False, description="log a line of JSON for every request that ends: kept share, blocks, ..."
    )
    force: bool = Field(False, description="compact even when no block is saved (a control)")
    unsupported: Literal["refuse", "uncompressed"] = Field(
        "refuse", description="what to do with a model whose cache FastGen cannot compress"
    )

    @field_validator("policy", mode="before")
    @classmethod
    def _check_policy(cls, policy: object) -> object:
        """Load the user's own policy, so that what is wrong with it shows at start."""
        names = get_args(PolicyName)
        if policy in names:
            return policy
        legal = f"{', '.join(map(repr, names))} or package.module:Class, a policy of your own"
        if not isinstance(policy, str) or not _IMPORT_PATH.fullmatch(policy):
            raise ValueError(f"use {legal}")
        from fastgen_vllm.policy.own import own_selector  # PyTorch, which only this needs here

        try:
            own_selector(policy)
        except ValueError as error:
            raise ValueError(f"{error}; or use {legal}") from error
        return policy

    @field_validator("keep", "keep_tokens")
    @classmethod
    def _check_budget(cls, budget: float | None, info: ValidationInfo) -> float | None:
        policy = info.data.get("policy", "coverage")
        if budget is None:
            is_last = info.field_name == "keep_tokens" and "keep" in info.data
            if is_last and info.data["keep"] is None and policy in NEED_BUDGET:
                raise ValueError(f"policy {policy} knows no recovery; give it or keep")
            return None
        if policy not in HAVE_BUDGET:
            legal = " or ".join(HAVE_BUDGET)
            raise ValueError(f"needs policy {legal}, not {policy}; others go by recovery")
        if (share := info.data.get("keep")) is not None:
            raise ValueError(f"keep={share} says as much; give one of the two, the other is null")
        return budget

    @field_validator("head_weights")
    @classmethod
    def _check_head_weights(
        cls, weights: HeadWeights | None, info: ValidationInfo
    ) -> HeadWeights | None:
        policy = info.data.get("policy", "coverage")
        if weights is not None and policy in ("paper", "full", "ahakv"):
            raise ValueError(f"{policy} does not go by importance; use policy coverage")
        return weights


def preset_names() -> list[str]:
    """Names of the presets that ship with the package, sorted."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def load_config(source: str, option: str = "--fastgen", other: str = "off, ") -> FastGenConfig:
    """Read a preset by name or a YAML file by path.

    Args:
        source: the preset's name, or the path.
        option: how the user gave it, for messages.
        other: what the option takes beside presets and files, for messages.

    Raises:
        ValueError: no such preset or file, not YAML, or an option out of range; the
            message names the option, its value and the legal set.
    """
    path = PRESET_DIR / f"{source}.yaml" if source in preset_names() else Path(source)
    if not path.is_file():
        raise ValueError(
            f"{option} {source}: no such preset or file. Use one of "
            f"{', '.join(preset_names())}, {other}or a path to a YAML file."
        )
    try:
        options = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{option} {source}: {path} is not valid YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{option} {source}: {path} must hold 'option: value' lines.")
    return parse_config({"name": path.stem, **options})


def parse_config(options: dict[str, Any]) -> FastGenConfig:
    """Validate options from a mapping; see :func:`load_config` for errors."""
    try:
        return FastGenConfig.model_validate(options)
    except ValidationError as error:
        raise ValueError(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"])
        lines.append(f"fastgen option {option}={problem['input']!r}: {problem['msg']}")
    return "; ".join(lines) + f". Options: {', '.join(FastGenConfig.model_fields)}."
