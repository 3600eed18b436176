"""Per-request options."""

from typing import Any

import pytest

from fastgen_vllm.request import RequestOptionError, RequestOptions


def test_defaults() -> None:
    assert RequestOptions.parse(None) == RequestOptions(True, None, None)
    assert RequestOptions.parse({"other": 1}) == RequestOptions(True, None, None)


def test_all_options() -> None:
    options = RequestOptions.parse(
        {"fastgen": "off", "fastgen_recovery": 0.97, "fastgen_policy": "paper"}
    )
    assert options == RequestOptions(False, 0.97, "paper")
    assert RequestOptions.parse({"fastgen_recovery": 1}).recovery == 1.0


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"fastgen": "maybe"}, "fastgen"),
        ({"fastgen": 1}, "fastgen"),
        ({"fastgen": ["on"]}, "fastgen"),
        ({"fastgen_recovery": 0}, "fastgen_recovery"),
        ({"fastgen_recovery": -0.5}, "fastgen_recovery"),
        ({"fastgen_recovery": 1.01}, "fastgen_recovery"),
        ({"fastgen_recovery": float("nan")}, "fastgen_recovery"),
        ({"fastgen_recovery": "0.9"}, "fastgen_recovery"),
        ({"fastgen_recovery": True}, "fastgen_recovery"),
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
