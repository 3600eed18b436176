"""``python -m tests.faults``: every case, and their table; ``--minutes N``: the machine, so long.

It ends with 1 if a case failed, and shows how.
"""

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from fastgen_vllm.integration.plugin import register
from tests.faults.faults import FAULTS
from tests.faults.machine import Engines, Faults
from tests.faults.matrix import run_case
from tests.faults.phases import PHASES
from tests.faults.requests import Served, stock_answers
from tests.integration.tiny import save_tiny_llama

MODES = {"sync": False, "async": True}


def print_table(model: Path) -> int:
    """Run all cases; return how many failed. A cell says how many passed, sync and async."""
    passed: dict[tuple[str, str], int] = {}
    failed: list[str] = []
    answers = stock_answers(model)
    for mode, is_async in MODES.items():
        served = Served(model, is_async=is_async, blocks=60)
        try:
            for phase in PHASES:
                for fault in FAULTS:
                    cell = (phase.__name__, fault.__name__)
                    try:
                        run_case(served, phase, fault, answers)
                    except Exception:
                        failed.append(f"{mode} {' x '.join(cell)}\n{traceback.format_exc()}")
                        served.close()
                        served = Served(model, is_async=is_async, blocks=60)
                    else:
                        passed[cell] = passed.get(cell, 0) + 1
        finally:
            served.close()
    names = [phase.__name__ for phase in PHASES]
    print(f"{'':16}", *(f"{name:>13}" for name in names), sep="")
    for fault in FAULTS:
        cells = (f"{passed.get((name, fault.__name__), 0):13}" for name in names)
        print(f"{fault.__name__:16}", *cells, sep="")
    total = len(MODES) * len(PHASES) * len(FAULTS)
    print(f"{sum(passed.values())} of {total} cases passed", *failed, sep="\n")
    return len(failed)


def run_machine(model: Path, minutes: float) -> None:
    """Run the machine until the time is over; raises what hypothesis found."""
    end = time.monotonic() + 60 * minutes
    runs = 0
    chosen = settings(
        max_examples=10,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    while time.monotonic() < end:
        for is_async in MODES.values():
            Engines.start(model, is_async=is_async)
            try:
                run_state_machine_as_test(Faults, settings=chosen)
            finally:
                Engines.stop()
            runs += chosen.max_examples
    print(
        f"{runs} runs of up to {chosen.stateful_step_count} rules in {minutes:g} minutes: no fault"
    )


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, help="let the machine run for so long instead")
    minutes = parser.parse_args().minutes
    register()
    with tempfile.TemporaryDirectory() as directory:
        model = save_tiny_llama(Path(directory) / "llama")
        if minutes is None:
            return 1 if print_table(model) else 0
        run_machine(model, minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
