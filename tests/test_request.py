"""Per-request options."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from fastgen_vllm.request import RequestOptionError, RequestOptions


def test_defaults() -> None:
    as_configured = RequestOptions(
        enabled=True,
        recovery=None,
        keep=None,
        keep_tokens=None,
        policy=None,
        generated=None,
        report=False,
    )
    assert RequestOptions.parse(None) == as_configured
    assert RequestOptions.parse({"other": 1}) == as_configured


def test_all_options() -> None:
    options = RequestOptions.parse(
        {
            "fastgen": "off",
            "fastgen_recovery": 0.97,
            "fastgen_policy": "coverage",
            "fastgen_generated": "keep",
            "fastgen_report": "on",
        }
    )
    assert options == RequestOptions(
        enabled=False, recovery=0.97, policy="coverage", generated=1.0, report=True
    )


def test_generated_is_of_coverage_only() -> None:
    with pytest.raises(RequestOptionError, match=r"fastgen_generated='keep'.*must be coverage"):
        RequestOptions.parse({"fastgen_policy": "paper", "fastgen_generated": "keep"})


def test_a_number_may_be_beyond_floats() -> None:
    with pytest.raises(RequestOptionError, match="above 0 and at most 1"):
        RequestOptions.parse({"fastgen_keep": 10**400})


def test_a_request_cannot_name_a_class() -> None:
    with pytest.raises(RequestOptionError, match="use one of paper, coverage, full") as caught:
        RequestOptions.parse({"fastgen_policy": "fastgen_vllm.policy:Full"})
    assert caught.value.parameter == "fastgen_policy"


@pytest.mark.parametrize("option", ["recovery", "keep"])
def test_shares_may_be_whole_numbers(option: str) -> None:
    assert getattr(RequestOptions.parse({f"fastgen_{option}": 1}), option) == 1.0


BUDGETS: tuple[dict[str, Any], ...] = ({"fastgen_keep": 0.25}, {"fastgen_keep_tokens": 300})


@pytest.mark.parametrize("policy", ["coverage", "ahakv"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_go_with_some_policies(budget: dict[str, Any], policy: Any) -> None:
    alone = RequestOptions.parse(budget)
    assert RequestOptions(keep=alone.keep, keep_tokens=alone.keep_tokens) == alone
    named = RequestOptions.parse({"fastgen_policy": policy, **budget})
    assert named == replace(alone, policy=policy)


@pytest.mark.parametrize("given", [{}, {"fastgen_recovery": 0.9}])
def test_ahakv_needs_a_budget(given: dict[str, Any]) -> None:
    with pytest.raises(RequestOptionError, match="give fastgen_keep or fastgen_keep_t") as caught:
        RequestOptions.parse({"fastgen_policy": "ahakv", **given})
    assert caught.value.parameter == "fastgen_policy"


@pytest.mark.parametrize(
    ("first", "second"), combinations(({"fastgen_recovery": 0.9}, *BUDGETS), 2)
)
def test_goals_exclude_each_other(first: dict[str, Any], second: dict[str, Any]) -> None:
    (earlier,), (later,) = first, second
    with pytest.raises(RequestOptionError, match=f"give it or {earlier}, not both") as caught:
        RequestOptions.parse(second | first)
    assert caught.value.parameter == later


@pytest.mark.parametrize("policy", ["paper", "full"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_go_with_no_other_policy(budget: dict[str, Any], policy: str) -> None:
    with pytest.raises(RequestOptionError, match="fastgen_policy must be coverage or a") as caught:
        RequestOptions.parse({"fastgen_policy": policy, **budget})
    assert [caught.value.parameter] == [*budget]


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(RequestOptionError) as caught:
        RequestOptions.parse({"fastgen_window": 3})
    for name in ("", "_recovery", "_keep", "_keep_tokens", "_policy", "_generated", "_report"):
        assert f"fastgen{name}" in str(caught.value).partition("known are")[2]


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"fastgen": "maybe"}, "fastgen"),
        ({"fastgen": 1}, "fastgen"),
        ({"fastgen": ["on"]}, "fastgen"),
        ({"fastgen_report": True}, "fastgen_report"),
        ({"fastgen_report": "yes"}, "fastgen_report"),
        ({"fastgen_recovery": 0}, "fastgen_recovery"),
        ({"fastgen_recovery": -0.5}, "fastgen_recovery"),
        ({"fastgen_recovery": 1.01}, "fastgen_recovery"),
        ({"fastgen_recovery": float("nan")}, "fastgen_recovery"),
        ({"fastgen_recovery": "0.9"}, "fastgen_recovery"),
        ({"fastgen_recovery": True}, "fastgen_recovery"),
        ({"fastgen_keep": 0}, "fastgen_keep"),
        ({"fastgen_keep": 1.01}, "fastgen_keep"),
        ({"fastgen_keep": "0.5"}, "fastgen_keep"),
        ({"fastgen_keep_tokens": 0}, "fastgen_keep_tokens"),
        ({"fastgen_keep_tokens": 0.5}, "fastgen_keep_tokens"),
        ({"fastgen_keep_tokens": 10**400}, "fastgen_keep_tokens"),
        ({"fastgen_keep_tokens": "300"}, "fastgen_keep_tokens"),
        ({"fastgen_keep_tokens": True}, "fastgen_keep_tokens"),
        ({"fastgen_keep": True}, "fastgen_keep"),
        ({"fastgen_generated": "drop"}, "fastgen_generated"),
        ({"fastgen_generated": True}, "fastgen_generated"),
        ({"fastgen_generated": -0.1}, "fastgen_generated"),
        ({"fastgen_generated": 1.5}, "fastgen_generated"),
        ({"fastgen_policy": "best"}, "fastgen_policy"),
        ({"fastgen_policy": 3}, "fastgen_policy"),
        ({"fastgen_policy": ["paper"]}, "fastgen_policy"),
        ({"fastgen_polcy": "paper"}, "fastgen_polcy"),
    ],
)
def test_bad_options_name_the_parameter(arguments: dict[str, Any], parameter: str) -> None:
    with pytest.raises(RequestOptionError) as caught:
        RequestOptions.parse(arguments)
    assert caught.value.parameter == parameter
    assert parameter in str(caught.value)
