"""A server that finds in its worker that it cannot start."""

from pathlib import Path

from tests.policy import own
from tests.server.running import FLAGS, START_SECONDS, Server


def test_a_policy_that_fails(tmp_path: Path) -> None:
    """It is tried with the model's layers and heads, which only the worker knows."""
    policy = f"{own.MODULE}:OneTooFew"
    server = Server(tmp_path / "log", *FLAGS, "--additional-config.fastgen.policy", policy)
    try:
        assert server.process.wait(START_SECONDS) != 0
    finally:
        server.stop()
    said = server.log.read_text()
    assert f"fastgen option policy={policy!r}: it fails on a prompt of 512 tokens (" in said
