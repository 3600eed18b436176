"""The schema of `/fastgen/profile` allows the arguments that a request may have, and no others."""

from itertools import product
from typing import Any

import jsonschema

from fastgen_vllm.api.schema import ProfileRequest
from fastgen_vllm.request import RequestOptionError, RequestOptions

#: of every argument: absent, good ones, a bad one
VALUES: dict[str, tuple[Any, ...]] = {
    "fastgen": (None, "on", "maybe"),
    "fastgen_recovery": (None, 0.9, 0),
    "fastgen_keep": (None, 0.5, 1.5),
    "fastgen_keep_tokens": (None, 300, 0.5),
    "fastgen_generated": (None, "keep", 0.5, 2),
    "fastgen_policy": (None, "coverage", "full", "ahakv", "best"),
    "fastgen_report": (None, "on", "yes"),
    "other": (None, 1),
}


def test_schema_and_parser_agree() -> None:
    schema = ProfileRequest.model_json_schema()["properties"]["arguments"]
    validator = jsonschema.Draft202012Validator(schema)
    accepted = 0
    for values in product(*VALUES.values()):
        given = {name: v for name, v in zip(VALUES, values, strict=True) if v is not None}
        try:
            RequestOptions.parse(given)
            good = "other" not in given  # a request may have arguments that are not ours
        except RequestOptionError:
            good = False
        assert validator.is_valid(given) == good, given
        accepted += good
    assert accepted > 20
