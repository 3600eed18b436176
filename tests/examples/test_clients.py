"""Examples that speak to a running server."""

import re

import pytest

from tests.examples.running import run_example
from tests.server.running import Server


def test_chat_client(server: Server) -> None:
    before = server.metrics()
    out = run_example("chat_client.py", "--url", server.url, "--max-tokens", "16")
    turns = re.findall(r"\[(\d+) prompt tokens, (\d+) generated\]", out)
    prompts, answers = ([int(turn[side]) for turn in turns] for side in (0, 1))
    assert len(turns) == out.count("user: ") == out.count("assistant: ") == 3
    assert prompts[0] > 512, "the first prompt could not be compressed"
    assert prompts[0] + answers[0] < prompts[1] < prompts[1] + answers[1] < prompts[2]
    assert all(1 <= count <= 16 for count in answers)
    profiled = 'fastgen_kept_share_count{engine="0"}'
    assert server.metrics()[profiled] > before.get(profiled, 0)


def test_chat_client_asks_what_it_is_given(server: Server) -> None:
    question = "What is a coroutine?"
    out = run_example("chat_client.py", "--url", server.url, "--max-tokens", "4", question)
    assert out.count("user: ") == 1 and f"user: {question}\n" in out


def test_per_request(server: Server) -> None:
    out = run_example("per_request.py", "--url", server.url, "--max-tokens", "4")
    found = re.findall(
        r"^(as configured|\{.*\})\n  kept: ([\d.]+) of (\d+) tokens \((.+)\)\n  answer: ['\"].+$",
        out,
        re.MULTILINE,
    )
    assert len({tokens for _, _, tokens, _ in found}) == 1, "it is one prompt"
    kept = {arguments: float(share) for arguments, share, _, _ in found}
    why = {arguments: reason for arguments, _, _, reason in found}
    assert len(kept) == 6
    assert kept["{'fastgen': 'off'}"] == kept["{'fastgen_policy': 'full'}"] == 1
    assert kept["{'fastgen_keep': 0.25}"] == 0.25
    (_, _, num_tokens, _), *_ = found
    assert kept["{'fastgen_keep_tokens': 256}"] == pytest.approx(256 / int(num_tokens), abs=0.006)
    assert 0.25 < kept["as configured"] < kept["{'fastgen_recovery': 0.97}"] < 1
    assert why["{'fastgen': 'off'}"] == 'the argument fastgen="off" says so'
    assert why["{'fastgen_policy': 'full'}"] == "full in 90 heads"
    assert "coverage in " in why["as configured"]
