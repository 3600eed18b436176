"""The machine of faults, for a short while; `python -m tests.faults` runs it for longer."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.faults.machine import Engines, Faults


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_machine(tiny_llama: Path, is_async: bool) -> None:
    Engines.start(tiny_llama, is_async=is_async)
    try:
        run_state_machine_as_test(
            Faults,
            settings=settings(
                max_examples=12,
                stateful_step_count=30,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        Engines.stop()
