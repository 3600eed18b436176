"""Bad arguments of requests to any route, before that route sees them."""

import json
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from tests.api.fake import Client, make_app


def serve(fastgen: str | None = "full") -> TestClient:
    app = make_app(Client(fastgen))

    @app.post("/v1/echo")
    async def echo(request: Request) -> str:
        return (await request.body()).decode()

    return TestClient(app)


@pytest.mark.parametrize(
    ("arguments", "parameter", "message"),
    [
        ({"fastgen": True}, "fastgen", 'fastgen=True is not allowed: use "on" or "off".'),
        ({"fastgen": None}, "fastgen", 'use "on" or "off"'),
        ({"fastgen_recovery": True}, "fastgen_recovery", "above 0 and at most 1"),
        ({"fastgen_recovery": 10**400}, "fastgen_recovery", "above 0 and at most 1"),
        ({"fastgen_policy": ["full"]}, "fastgen_policy", "use one of paper, coverage, full"),
        ({"fastgen_keep": {"a": 1}}, "fastgen_keep", "above 0 and at most 1"),
        ({"fastgen_window": 3}, "fastgen_window", "known are fastgen, fastgen_recovery"),
    ],
)
def test_a_bad_argument_is_a_400(arguments: dict[str, Any], parameter: str, message: str) -> None:
    answer = serve().post("/v1/echo", json={"stream": True, "vllm_xargs": arguments})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (parameter, 400)
    assert message in error["message"] and error["type"] == "BadRequestError"


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "a"}',
        '{"prompt": "a", "vllm_xargs": {"fastgen": "off", "other": [1]}}',
        '{"vllm_xargs": null}',
        '{"vllm_xargs": 3}',
        '["vllm_xargs"]',
        '{"vllm_xargs": ',
        '{"vllm_xargs": ' + "[" * 100_000,
        "",
    ],
)
def test_everything_else_arrives_as_it_was_sent(body: str) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = serve().post("/v1/echo", content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (200, body)


def test_a_body_in_pieces_is_one_body() -> None:
    pieces = [b'{"vllm_xargs": {"fast', b'gen_window": 3}}']
    headers = {"Content-Type": "application/json"}
    answer = serve().post("/v1/echo", content=iter(pieces), headers=headers)
    assert answer.json()["error"]["param"] == "fastgen_window"


def test_other_content_is_not_read() -> None:
    body = json.dumps({"vllm_xargs": {"fastgen_window": 3}})
    assert serve().post("/v1/echo", content=body).json() == body


def test_a_server_without_fastgen_refuses_nothing() -> None:
    assert serve(None).post("/v1/echo", json={"vllm_xargs": {"fastgen": 3}}).status_code == 200
