"""From a configuration and a request to a selector: who has the last word."""

from typing import Any

import pytest
import torch

from fastgen_vllm.config import CoverageOptions, FastGenConfig, PaperOptions
from fastgen_vllm.policy import Coverage, Full, Ladder, selector_for
from fastgen_vllm.request import RequestOptions
from tests.profiles import make_profile, random_profile

AS_CONFIGURED = RequestOptions()
RUNGS = ["special", "punctuation", "frequent", "local"]


def ladder_names(*without: str) -> list[str]:
    """Names of the paper's rungs."""
    paper = PaperOptions(without=without)  # type: ignore[arg-type]
    selector = selector_for(FastGenConfig(policy="paper", paper=paper), AS_CONFIGURED)
    assert isinstance(selector, Ladder)
    return [rung.name for rung in selector.rungs]


def test_full() -> None:
    assert selector_for(FastGenConfig(policy="full"), AS_CONFIGURED) == Full()


def test_coverage_takes_its_options() -> None:
    options = CoverageOptions(recent=0.25, sinks=7, generated="keep")
    config = FastGenConfig(policy="coverage", keep=0.3, coverage=options)
    expected = Coverage(recent=0.25, sinks=7, generated=1.0, share=0.3)
    assert selector_for(config, AS_CONFIGURED) == expected


def coverage_of(config: FastGenConfig, **request: Any) -> Coverage:
    """The selector of a request that gives these options."""
    selector = selector_for(config, RequestOptions.parse(request))
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
    selector = selector_for(FastGenConfig(policy="paper"), AS_CONFIGURED)
    profile = make_profile(torch.rand(2, 3, 40), observed=40)
    choice = selector.choose(profile, 1.0)
    assert choice.keep.all()
    assert choice.counts()["full"] == 6


@pytest.mark.parametrize("policy", ["paper", "coverage", "full"])
@pytest.mark.parametrize("length", [1, 2, 31, 33])
def test_every_selector_takes_short_prompts(policy: Any, length: int) -> None:
    selector = selector_for(FastGenConfig(policy=policy), AS_CONFIGURED)
    keep = selector.choose(random_profile(1, 2, length), 0.9).keep
    assert keep.shape == (1, 2, length)
    assert bool(keep.any(-1).all()) or policy == "paper"
