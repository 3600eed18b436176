"""Which requests wait, though vLLM's runner knows them."""

from vllm.v1.core.sched.output import SchedulerOutput


class WaitingAgain:
    """Requests that were preempted and wait.

    vLLM's runner goes on to know them, as it knows requests that run and have no part in a step.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def note(self, step: SchedulerOutput) -> None:
        """Take a step's message into account."""
        self._ids |= step.preempted_req_ids or set()
        self._ids -= step.finished_req_ids | step.num_scheduled_tokens.keys()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._ids
