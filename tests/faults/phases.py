"""Moments in the life of a request with a long prompt, which comes in chunks."""

from collections.abc import Callable

from fastgen_vllm.runtime.messages import Uncompacted
from tests.faults.requests import BUDGET, KINDS, Served

VICTIM = KINDS[0]  # lossless: it must answer as in stock whatever happens
MOST_STEPS = 200


def _computed(served: Served, request_id: str) -> int:
    return int(served.request(request_id).num_computed_tokens)


def queued(served: Served, request_id: str) -> bool:
    """It has arrived."""
    return True


def first_chunk(served: Served, request_id: str) -> bool:
    """A chunk of its prompt is computed."""
    return _computed(served, request_id) > 0


def middle_chunk(served: Served, request_id: str) -> bool:
    """Some chunks are computed, and some are not."""
    return _computed(served, request_id) > BUDGET


def last_chunk(served: Served, request_id: str) -> bool:
    """All but one chunk are computed."""
    return _computed(served, request_id) >= VICTIM.length - BUDGET


def reported(served: Served, request_id: str) -> bool:
    """Its plan has been reported and waits for its order."""
    return served.request(request_id).request_id in served.engine.scheduler._pending


def compacted(served: Served, request_id: str) -> bool:
    """It was compacted in the step before; with async scheduling, in the one that runs."""
    return served.progress(request_id).outcome is None


def grown(served: Served, request_id: str) -> bool:
    """Its page stream has more blocks than it had at first."""
    progress = served.progress(request_id)
    if progress.outcome is not None:
        return False
    held = served.engine.scheduler._manager.num_blocks(served.request(request_id).request_id)
    return bool(held > progress.plan.size.blocks(progress.compacted_at))


def preempted(served: Served, request_id: str) -> bool:
    """It was compacted, lost its blocks and has some tokens of its answer computed anew."""
    request, progress = served.request(request_id), served.progress(request_id)
    if request.num_preemptions == 0:
        if compacted(served, request_id) and request.num_output_tokens >= 6:
            served.engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        return False
    anew = request.num_computed_tokens - VICTIM.length
    return progress.outcome is not Uncompacted.FINISHED_FIRST and anew >= 2


Phase = Callable[[Served, str], bool]
PHASES: tuple[Phase, ...] = (
    queued,
    first_chunk,
    middle_chunk,
    last_chunk,
    reported,
    compacted,
    grown,
    preempted,
)


def reach(served: Served, phase: Phase, request_id: str) -> None:
    """Run steps until the request is in the phase."""
    for _ in range(MOST_STEPS):
        if phase(served, request_id):
            return
        served.step()
    raise AssertionError(f"the request never was {phase.__name__}")
