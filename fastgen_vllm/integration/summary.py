"""What became of one request: for the answer that asks for it, and for the log.

A summary reaches the client in ``RequestOutput.kv_transfer_params["fastgen"]``, which vLLM's server
sends as ``kv_transfer_params`` of an answer that is not streamed: the one field of an answer that a
scheduler fills. It exists for KV connectors, which cannot be configured beside FastGen.
"""

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

#: Key below ``kv_transfer_params``.
SUMMARY_KEY = "fastgen"
#: A logger of its own, so that a logging configuration can send its lines elsewhere.
logger = logging.getLogger("vllm.fastgen.requests")


@dataclass(frozen=True)
class RequestSummary:
    """What a request used, when it ended."""

    prompt_tokens: int
    answer_tokens: int
    kept_share: float  # kept tokens over prompt tokens, averaged over heads
    policies: dict[str, int]  # heads by the policy chosen for them; empty if uncompacted
    blocks: int  # held in the end
    blocks_shared: int  # the first ones of these that stayed, as others read them, too
    blocks_uncompressed: int  # that stock vLLM would have held
    preemptions: int
    uncompacted_because: str | None  # see `Uncompacted`

    def to_answer(self) -> dict[str, Any]:
        """For ``kv_transfer_params``."""
        return {SUMMARY_KEY: asdict(self)}

    def log(self, request_id: str, finish_reason: str) -> None:
        """Write one line of JSON; ``request_id`` is the one that the client knows."""
        facts = {"request_id": request_id, "finish_reason": finish_reason, **asdict(self)}
        logger.info("%s", json.dumps(facts))
