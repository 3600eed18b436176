"""What may happen to a request, or beside it."""

import time
from collections.abc import Callable

import pytest
from vllm.exceptions import VLLMValidationError

from tests.faults.requests import KINDS, Kind, Moody, Served

TWIN = Kind(200, 3)
#: A bad value of every argument of ours.
BAD_ARGUMENTS: tuple[dict[str, object], ...] = (
    {"fastgen": "maybe"},
    {"fastgen": True},
    {"fastgen_recovery": 2},
    {"fastgen_recovery": "high"},
    {"fastgen_keep": 0},
    {"fastgen_keep": 0.5, "fastgen_recovery": 0.5},
    {"fastgen_keep_tokens": 0.5},
    {"fastgen_generated": "some"},
    {"fastgen_policy": "none"},
    {"fastgen_report": "loud"},
    {"fastgen_polcy": "paper"},
)


def nothing(served: Served, request_id: str) -> None:
    """A control."""


def abort(served: Served, request_id: str) -> None:
    """Its client is gone."""
    served.abort(request_id)


def preempt(served: Served, request_id: str) -> None:
    """The pool is short, and it is the one that gives way."""
    scheduler, request = served.engine.scheduler, served.request(request_id)
    if request in scheduler.running:  # as vLLM does in schedule()
        scheduler.running.remove(request)
        scheduler._preempt_request(request, time.monotonic())
        served.engine.check()


def give_way(served: Served, request_id: str) -> None:
    """Requests that go before it need more blocks than are left."""
    for _ in range(3):
        served.add(KINDS[2], priority=-1)


def reset(served: Served, request_id: str) -> None:
    """The prefix cache is to be emptied, but requests run."""
    served.engine.core.reset_prefix_cache()


def reset_running(served: Served, request_id: str) -> None:
    """The prefix cache is emptied; what runs starts anew."""
    served.engine.core.reset_prefix_cache(reset_running_requests=True)
    served.engine.check()


def pause(served: Served, request_id: str) -> None:
    """The engine is paused for some steps, keeps its blocks, and goes on."""
    served.engine.core.pause_scheduler(mode="keep", clear_cache=False)
    for _ in range(3):
        served.step()
    served.engine.core.resume_scheduler()


def pause_and_clear(served: Served, request_id: str) -> None:
    """As by default: vLLM preempts what runs and empties the cache."""
    served.engine.core.pause_scheduler(mode="keep", clear_cache=True)
    for _ in range(3):
        served.step()
    served.engine.core.resume_scheduler()


def sleep(served: Served, request_id: str) -> None:
    """The engine sleeps and wakes up."""
    served.engine.core.sleep(level=1, mode="keep")
    served.step()
    assert served.engine.core.wake_up()


def policy_fails(served: Served, request_id: str) -> None:
    """The user's policy raises an error from now on."""
    Moody.is_bad = True


def bad_arguments(served: Served, request_id: str) -> None:
    """Requests come whose arguments are not allowed."""
    for extra in BAD_ARGUMENTS:
        with pytest.raises(VLLMValidationError) as caught:
            served.engine.add([5, 6, 7], extra_args=extra, detokenize=False)
        assert caught.value.parameter in extra
    served.engine.check()


def same_id(served: Served, request_id: str) -> None:
    """A second request comes under the same id: vLLM makes them two."""
    served.add_twin(TWIN, request_id)


Fault = Callable[[Served, str], None]
FAULTS: tuple[Fault, ...] = (
    nothing,
    abort,
    preempt,
    give_way,
    reset,
    reset_running,
    pause,
    pause_and_clear,
    sleep,
    policy_fails,
    bad_arguments,
    same_id,
)
