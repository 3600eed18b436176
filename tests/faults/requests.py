"""Kinds of requests, and one engine that serves them beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.outputs import RequestOutput

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.integration.summary import SUMMARY_KEY
from fastgen_vllm.policy import Choice, Full, Policy, Selector
from fastgen_vllm.profile import PromptProfile
from tests.integration.engine import Engine, engine_config
from tests.integration.tiny import random_prompts

#: Tokens that a step computes at most: a long prompt takes five steps.
BUDGET = 128


class Moody(Policy):
    """Keeps the second half of the prompt; in a bad mood it fails on prompts of even length."""

    is_bad = False

    @property
    def name(self) -> str:
        return "moody"

    @property
    def rule(self) -> StoreRule:
        return StoreRule.BY_AGE

    def keep(self, profile: PromptProfile) -> torch.Tensor:
        if Moody.is_bad and profile.num_tokens % 2 == 0:
            raise RuntimeError("in a bad mood")
        return torch.arange(profile.num_tokens) >= profile.num_tokens // 2


class Chooser(Selector):
    """Everything in odd layers, where heads append, and the half in the others."""

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        half = Moody().keep(profile)
        layers, heads, num_tokens = profile.attention.shape
        index = (torch.arange(layers) % 2)[:, None].expand(layers, heads)
        keep = half | (index[..., None] == 1)
        return Choice((Moody(), Full()), index, keep.expand(layers, heads, num_tokens))


@dataclass(frozen=True)
class Kind:
    """A request: its prompt, and how it wants to be served."""

    length: int
    answer: int
    extra: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> list[int]:
        """Token ids; the same for all kinds of one length."""
        return random_prompts([self.length], seed=self.length)[0]

    @property
    def is_lossless(self) -> bool:
        """Whether it must answer as in stock vLLM, whenever it is compacted."""
        return self.extra.get("fastgen_policy") == "full" or self.extra.get("fastgen") == "off"


LOSSLESS = {"fastgen_policy": "full"}
KINDS: tuple[Kind, ...] = (
    Kind(520, 70, LOSSLESS),
    Kind(520, 70),
    Kind(333, 90),
    Kind(150, 40, LOSSLESS),
    Kind(90, 60, {"fastgen": "off"}),
    Kind(31, 50),
    Kind(260, 1),
    Kind(400, 50, LOSSLESS, dict(temperature=1.0, seed=5)),
    Kind(210, 45, {"fastgen_policy": "coverage", "fastgen_keep": 0.3}),
    Kind(300, 40, {"fastgen_generated": "keep", "fastgen_policy": "coverage"}),
)


class Served:
    """An engine whose requests are followed to their ends."""

    def __init__(self, model: Path, *, is_async: bool, blocks: int) -> None:
        fastgen = FastGenConfig(policy=f"{__name__}:Chooser", observe=64, min_prompt=64, force=True)
        config = engine_config(
            model,
            fastgen,
            async_scheduling=is_async,
            skip_tokenizer_init=True,
            max_model_len=768,
            max_num_seqs=8,
            max_num_batched_tokens=BUDGET,
            num_gpu_blocks_override=blocks,
            scheduling_policy="priority",
        )
        Moody.is_bad = False
        self.engine = Engine(config)
        self.alive: dict[str, Kind] = {}
        #: reasons of requests that ended uncompacted, by what their answers or the engine said
        self.uncompacted: list[str] = []
        self._twins: dict[str, Kind] = {}

    def add(self, kind: Kind, priority: int = 0) -> str:
        """Queue a request; return its id."""
        extra = {**kind.extra, "fastgen_report": "on"}
        params = dict(max_tokens=kind.answer, detokenize=False, extra_args=extra, **kind.params)
        request_id = self.engine.add(kind.prompt, priority=priority, **params)
        self.alive[request_id] = kind
        return request_id

    def add_twin(self, kind: Kind, request_id: str) -> None:
        """Queue another request under an id that is in use; its answer is the shorter one."""
        assert kind.answer < self.alive[request_id].answer
        count, self.engine._count = self.engine._count, int(request_id.removeprefix("r"))
        first = self.alive[request_id]
        assert self.add(kind) == request_id
        self.engine._count, self.alive[request_id] = count, first
        self._twins[request_id] = kind

    def step(self) -> list[RequestOutput]:
        """Run a step and check every invariant; note what ended."""
        outputs = self.engine.step()
        for output in outputs:
            if output.finished:
                answered = len(output.outputs[0].token_ids)
                twin = self._twins.get(output.request_id)
                if twin is not None and answered == twin.answer:
                    kind = self._twins.pop(output.request_id)
                else:
                    kind = self.alive.pop(output.request_id)
                assert answered == kind.answer
                reason = output.kv_transfer_params[SUMMARY_KEY]["uncompacted_because"]
                if reason is not None:
                    self.uncompacted.append(reason)
        return outputs

    def request(self, request_id: str) -> Any:
        """vLLM's request, or None if it has ended."""
        requests = self.engine.scheduler.requests
        return next((r for i, r in requests.items() if i.startswith(f"{request_id}-")), None)

    def progress(self, request_id: str) -> Any:
        """What the scheduler knows of its compaction."""
        return self.engine.scheduler._progress[self.request(request_id).request_id]

    def abort(self, request_id: str) -> None:
        """End a request from outside."""
        reason = self.progress(request_id).outcome
        if reason is not None:
            self.uncompacted.append(reason.value)
        self.engine.llm.abort_request([request_id])
        del self.alive[request_id]
        self.engine.check()

    def drain(self) -> None:
        """Run until nothing is left; pool, lanes and statistics must be as they should be."""
        while self.engine.llm.has_unfinished_requests():
            self.step()
        self.engine.check_drained()
        self.step_idle()
        runtime = self.engine.runtime
        assert not runtime._requests, "the worker remembers a request that ended"
        assert not self.alive
        counted = self.engine.stats.uncompacted
        expected = {reason: self.uncompacted.count(reason) for reason in self.uncompacted}
        assert counted == expected, "statistics tell other ends than answers did"

    def step_idle(self) -> None:
        """Have the worker told of the last ends."""
        for _ in range(3):
            self.engine.core.step_fn()
        self.engine.check()

    def answer(self, request_id: str) -> Sequence[int]:
        """Tokens of a request that has ended."""
        return self.engine.finished[request_id].tokens

    def close(self) -> None:
        """Give back the engine's memory."""
        Moody.is_bad = False
        self.engine.close()


def stock_answers(model: Path) -> dict[int, list[int]]:
    """What stock vLLM answers each of :data:`KINDS`, by index."""
    config = engine_config(
        model, None, skip_tokenizer_init=True, max_model_len=768, num_gpu_blocks_override=200
    )
    engine = Engine(config)
    try:
        ids = [
            engine.add(kind.prompt, max_tokens=kind.answer, detokenize=False, **kind.params)
            for kind in KINDS
        ]
        done = engine.run()
        return {number: done[request_id].tokens for number, request_id in enumerate(ids)}
    finally:
        engine.close()
