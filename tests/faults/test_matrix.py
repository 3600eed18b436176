"""Every fault in every phase, sync and async."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faults import FAULTS, Fault
from tests.faults.matrix import run_case
from tests.faults.phases import PHASES, Phase
from tests.faults.requests import Served, stock_answers


@pytest.fixture(scope="module")
def answers(tiny_llama: Path) -> dict[int, list[int]]:
    return stock_answers(tiny_llama)


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def served(
    request: pytest.FixtureRequest, tiny_llama: Path, answers: dict[int, list[int]]
) -> Iterator[Served]:
    made = Served(tiny_llama, is_async=request.param, blocks=60)
    yield made
    made.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_fault(served: Served, answers: dict[int, list[int]], phase: Phase, fault: Fault) -> None:
    run_case(served, phase, fault, answers)
