"""Fixtures that every test may use, and how several pytest processes share the machine."""

import os
from pathlib import Path

import pytest

# `make test ARGS=...` would tell the `make` of a test the same.
for name in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)

# pytest-xdist: each process keeps to a core, and so does all that it starts. OpenMP's threads wait
# for each other by spinning: two engines on the same cores would take many times as long as one.
# Here, because OpenMP counts cores when torch is imported, which nothing above does.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

#: Engines of several GiB run in each.
MOST_PROCESSES = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core; 0 (none beside pytest's own) for slow tests, which measure."""
    if config.option.markexpr != "not slow":
        return 0
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Directory of the embedded model, converted on first use and kept in the user's cache."""
    from fastgen_vllm.models.embedded import ensure_default_model  # not there beside torch alone

    return ensure_default_model()
