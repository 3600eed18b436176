"""From a configuration and a request to a selector: who has the last word."""

from typing import Any

import pytest
import torch

from fastgen_vllm.config import CoverageOptions, FastGenConfig, PaperOptions
from fastgen_vllm.policy import AhaKV, Coverage, Full, Ladder, Selector
from tests.policy.asked import selector_of
from tests.profiles import make_profile, random_profile

RUNGS = ["special", "punctuation", "frequent", "local"]


def ladder_names(*without: str) -> list[str]:
    """Names of the paper's rungs."""
    paper = PaperOptions(without=without)  # type: ignore[arg-type]
    selector = selector_of(FastGenConfig(policy="paper", paper=paper))
    assert isinstance(selector, Ladder)
    return [rung.name for rung in selector.rungs]


def test_full() -> None:
    assert selector_of(FastGenConfig(policy="full")) == Full()


def test_coverage_takes_its_options() -> None:
    options = CoverageOptions(recent=0.25, sinks=7, generated="keep")
    config = FastGenConfig(policy="coverage", keep=0.3, coverage=options)
    expected = Coverage(recent=0.25, sinks=7, generated=1.0, share=0.3)
    assert selector_of(config) == expected


def coverage_of(config: FastGenConfig, num_tokens: int = 1000, **request: Any) -> Coverage:
    """The selector for a prompt of a request that gives these options."""
    selector = selector_of(config, num_tokens, **request)
    assert isinstance(selector, Coverage)
    return selector


def test_coverage_goes_by_recovery_unless_told() -> None:
    assert coverage_of(FastGenConfig()).share is None


def test_a_requests_keep_goes_before_the_configured_one() -> None:
    assert coverage_of(FastGenConfig(keep=0.3), fastgen_keep=0.6).share == 0.6


def test_a_requests_keep_means_coverage() -> None:
    assert coverage_of(FastGenConfig(policy="paper"), fastgen_keep=0.6).share == 0.6


def test_a_requests_recovery_goes_before_the_configured_keep() -> None:
    assert coverage_of(FastGenConfig(keep=0.3), fastgen_recovery=0.9).share is None


def test_a_requests_policy_alone_leaves_the_configured_keep() -> None:
    assert coverage_of(FastGenConfig(keep=0.3), fastgen_policy="coverage").share == 0.3


@pytest.mark.parametrize(
    ("num_tokens", "share"), [(1, 1.0), (299, 1.0), (300, 1.0), (400, 0.75), (3000, 0.1)]
)
@pytest.mark.parametrize(
    ("config", "request_options"),
    [
        (FastGenConfig(keep_tokens=300), {}),
        (FastGenConfig(keep_tokens=20), {"fastgen_keep_tokens": 300}),
        (FastGenConfig(keep=0.3), {"fastgen_keep_tokens": 300}),
        (FastGenConfig(policy="paper"), {"fastgen_keep_tokens": 300}),
    ],
)
def test_tokens_are_a_share_of_the_prompt(
    config: FastGenConfig, request_options: dict[str, Any], num_tokens: int, share: float
) -> None:
    assert coverage_of(config, num_tokens, **request_options).share == share


def test_a_requests_goal_goes_before_configured_tokens() -> None:
    config = FastGenConfig(keep_tokens=300)
    assert coverage_of(config, fastgen_keep=0.6).share == 0.6
    assert coverage_of(config, fastgen_recovery=0.9).share is None
    assert coverage_of(config, fastgen_policy="coverage").share == 0.3


@pytest.mark.parametrize("num_tokens", [1, 7, 299, 300, 301, 1023, 4099])
def test_so_many_tokens_are_kept_to_one(num_tokens: int) -> None:
    config = FastGenConfig(keep_tokens=300)
    profile = random_profile(2, 3, num_tokens)
    keep = coverage_of(config, num_tokens).choose(profile, 0.5).keep
    assert int(keep.sum()) == 6 * min(300, num_tokens)


AHAKV = FastGenConfig(policy="ahakv", keep=0.3)


@pytest.mark.parametrize(
    ("config", "request_options", "expected"),
    [
        (AHAKV, {}, AhaKV(0.3)),
        (AHAKV, {"fastgen_keep": 0.6}, AhaKV(0.6)),
        (AHAKV, {"fastgen_keep_tokens": 100}, AhaKV(0.1)),
        (FastGenConfig(), {"fastgen_keep": 0.6, "fastgen_policy": "ahakv"}, AhaKV(0.6)),
        (AHAKV, {"fastgen_recovery": 0.9}, selector_of(FastGenConfig())),
        (AHAKV, {"fastgen_policy": "coverage"}, selector_of(FastGenConfig(keep=0.3))),
        (AHAKV, {"fastgen_policy": "full"}, Full()),
    ],
)
def test_ahakv_and_what_a_request_asks_for(
    config: FastGenConfig, request_options: dict[str, Any], expected: Selector
) -> None:
    """One that asks for what ahakv does not know gets coverage."""
    assert selector_of(config, **request_options) == expected


@pytest.mark.parametrize("configured", ["keep", "replace", 0.5])
@pytest.mark.parametrize(
    ("asked", "generated"), [("keep", 1.0), ("replace", 0.0), (0, 0.0), (0.25, 0.25)]
)
def test_a_requests_generated_goes_before_the_configured_one(
    configured: Any, asked: Any, generated: float
) -> None:
    options = CoverageOptions(generated=configured)
    selector = coverage_of(FastGenConfig(coverage=options), fastgen_generated=asked)
    assert selector.generated == generated


def test_generated_tokens_replace_by_default() -> None:
    assert coverage_of(FastGenConfig()).generated == 0


def test_ladder_is_the_papers() -> None:
    assert ladder_names() == [
        "special",
        "special+punctuation",
        "special+punctuation+frequent",
        "special+punctuation+frequent+local",
        "full",
    ]


@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_left_out_is_in_no_union(rung: str) -> None:
    names = ladder_names(rung)
    others = [other for other in RUNGS if other != rung]
    assert names == [*("+".join(others[: i + 1]) for i in range(3)), "full"]


def test_without_any_rung_everything_is_kept() -> None:
    assert ladder_names(*RUNGS) == ["full"]


def test_ladder_with_recovery_one_keeps_everything() -> None:
    selector = selector_of(FastGenConfig(policy="paper"))
    profile = make_profile(torch.rand(2, 3, 40), observed=40)
    choice = selector.choose(profile, 1.0)
    assert choice.keep.all()
    assert choice.counts()["full"] == 6


@pytest.mark.parametrize("policy", ["paper", "coverage", "full"])
@pytest.mark.parametrize("length", [1, 2, 31, 33])
def test_every_selector_takes_short_prompts(policy: Any, length: int) -> None:
    selector = selector_of(FastGenConfig(policy=policy))
    keep = selector.choose(random_profile(1, 2, length), 0.9).keep
    assert keep.shape == (1, 2, length)
    assert bool(keep.any(-1).all()) or policy == "paper"
