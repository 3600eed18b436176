"""A fault that happens to a request in a phase, beside two others that must not feel it."""

from tests.faults.faults import Fault, abort, policy_fails
from tests.faults.phases import VICTIM, Phase, preempted, reach
from tests.faults.requests import KINDS, Moody, Served

#: Beside the victim: one that is compacted, and one that never is.
WITNESSES = (3, 4)


def run_case(served: Served, phase: Phase, fault: Fault, answers: dict[int, list[int]]) -> None:
    """Raise AssertionError unless everybody ends as they should.

    Args:
        answers: stock's, to each kind of request.
    """
    served.engine.scheduler.reset_prefix_cache()
    witnesses = {served.add(KINDS[number]): answers[number] for number in WITNESSES}
    # Only a request that leaves it to the policy of the server can tell whether that failed.
    kind = VICTIM if fault is not policy_fails else KINDS[1]
    victim = served.add(kind, priority=1)
    reach(served, phase, victim)
    fault(served, victim)
    served.drain()
    Moody.is_bad = False
    for request_id, expected in witnesses.items():
        assert served.answer(request_id) == expected, "another request answers differently"
    if fault is abort:
        assert victim not in served.engine.finished
    elif kind is VICTIM:
        assert served.answer(victim) == answers[KINDS.index(VICTIM)]
    if fault is policy_fails and phase.__name__ in BEFORE_ITS_PLAN:
        assert served.answer(victim) == answers[1], "it is served uncompressed"
        assert "policy_failed" in served.uncompacted
    if phase is preempted:
        assert served.engine.preemptions > 0


#: Phases in which a policy has yet to choose.
BEFORE_ITS_PLAN = ("queued", "first_chunk", "middle_chunk", "last_chunk")
