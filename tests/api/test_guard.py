"""Bad arguments of requests to any route, before that route sees them."""

import json
from typing import Annotated, Any

import pytest
from fastapi import Form, Request, UploadFile
from fastapi.testclient import TestClient

from tests.api.fake import Client, make_app


def serve(fastgen: str | None = "full") -> TestClient:
    app = make_app(Client(fastgen))

    @app.post("/v1/echo")
    async def echo(request: Request) -> str:
        return (await request.body()).decode()

    @app.post("/v1/audio")
    async def audio(file: UploadFile, vllm_xargs: Annotated[str, Form()] = "") -> str:
        return f"{len(await file.read())} {vllm_xargs}"

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


BAD = {"fastgen_window": 3}
OTHERS = {"Content-Type": "Application/JSON ; charset=utf-8"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (json.dumps({"sampling_params": {"extra_args": BAD}, "stream": True}), {}),
        (json.dumps({"vllm_xargs": {}, "sampling_params": {"extra_args": BAD}}), {}),
        (json.dumps({"vllm_xargs": BAD}), OTHERS),
        ('{"vllm\\u005fxargs": {"fas\\u0074gen_window": 3}}', {}),
        (json.dumps({"vllm_xargs": BAD}).encode("utf-16"), {}),
        ('{"vllm_xargs": {}, "vllm_xargs": {"fastgen_window": 3}}', {}),
    ],
    ids=["generate", "both", "type", "escapes", "utf-16", "twice"],
)
def test_every_way_to_carry_arguments_is_checked(
    body: str | bytes, headers: dict[str, str]
) -> None:
    answer = serve().post(
        "/v1/echo", content=body, headers={"Content-Type": "application/json"} | headers
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "fastgen_window")


def audio(arguments: str) -> Any:
    files = {"file": ("a.wav", b"\0" * 10, "audio/wav")}
    return serve().post("/v1/audio", files=files, data={"vllm_xargs": arguments})


def test_arguments_of_a_form_are_checked() -> None:
    answer = audio(json.dumps(BAD))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "fastgen_window")


@pytest.mark.parametrize("arguments", ['{"fastgen": "off"}', "{", "3", ""])
def test_other_forms_arrive_as_they_were_sent(arguments: str) -> None:
    assert audio(arguments).json() == f"10 {arguments}"


def test_forms_that_are_too_long_for_vllm_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_AUDIO_CLIP_FILESIZE_MB", "0")
    assert audio(json.dumps(BAD)).json() == f"10 {json.dumps(BAD)}"


def test_a_form_that_cannot_be_read_is_left_to_the_route() -> None:
    headers = {"Content-Type": "multipart/form-data"}
    answer = serve().post("/v1/audio", content=b"vllm_xargs fastgen", headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "a"}',
        '{"sampling_params": {"extra_args": {"fastgen": "off"}}}',
        '{"sampling_params": ["fastgen"]}',
        '{"sampling_params": {"extra_args": "fastgen"}}',
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
