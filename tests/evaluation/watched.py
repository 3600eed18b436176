"""The evaluation's engine on a tiny model; what its scheduler did to each job is noted."""

from pathlib import Path

from vllm.outputs import RequestOutput

from fastgen_vllm.config import CoverageOptions, FastGenConfig
from fastgen_vllm.evaluation.engine import EvaluationEngine, Outcome
from fastgen_vllm.runtime import FastGenRuntime

#: Of the tiny models: layers, KV heads, slots of a page.
LAYERS, HEADS, SLOTS = 3, 2, 32
BLOCK_BYTES = LAYERS * HEADS * SLOTS * (2 * 32 * 4 + FastGenRuntime.SLOT_BYTES)

#: Generated tokens stay, as a dense run has it.
CONFIG = FastGenConfig(recovery=0.8, observe=128, coverage=CoverageOptions(generated="keep"))


class WatchedEngine(EvaluationEngine):
    """Notes which prompts were found in the prefix cache, and who was preempted."""

    def __init__(
        self,
        model: Path,
        *,
        blocks: int = 400,
        max_running: int = 8,
        config: FastGenConfig = CONFIG,
    ) -> None:
        self.cached: dict[str, int] = {}  # prompt tokens found, by job
        self.preemptions: dict[str, int] = {}  # by job
        super().__init__(
            str(model),
            config,
            dtype="float32",
            max_model_len=512,
            pool_bytes=blocks * BLOCK_BYTES
            + FastGenRuntime.record_bytes(LAYERS * HEADS, max_running),
            max_running=max_running,
        )
        self._stock_step = self._llm.step
        self._llm.step = self._noting_step

    def close(self) -> None:
        del self._stock_step  # it would keep vLLM's engine alive, and its process groups
        super().close()

    def _noting_step(self) -> list[RequestOutput]:
        outputs = self._stock_step()
        for output in outputs:
            self.cached.setdefault(output.request_id, output.num_cached_tokens or 0)
        return outputs

    def _step(self, watched: dict[str, Outcome]) -> None:
        super()._step(watched)
        for request_id, outcome in watched.items():
            request = self._core.scheduler.requests.get(request_id)
            if request is not None:
                self.preemptions[outcome.job.name] = request.num_preemptions
