"""A plan from before a reset of the prefix cache is not carried out by the plan that came after."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.policy import Policy
from fastgen_vllm.profile import PromptProfile
from fastgen_vllm.runtime.messages import CompactionOrder
from tests.integration.engine import Engine, engine_config
from tests.integration.tiny import random_prompts


@dataclass(frozen=True)
class InTurn(Policy):
    """Keeps a first share of the tokens, another one with each plan: as after new weights."""

    shares: ClassVar[list[float]] = [0.5]

    @property
    def name(self) -> str:
        return "in_turn"

    def keep(self, profile: PromptProfile) -> torch.Tensor:
        share = self.shares.pop(0)
        self.shares.append(share)
        return torch.arange(profile.num_tokens) < share * profile.num_tokens


def make_engine(model: Path) -> Engine:
    fastgen = FastGenConfig(
        policy=f"{__name__}:InTurn",
        recovery=0.01,
        min_prompt=64,
        min_answer=1,
        observe=32,
        force=True,
    )
    return Engine(
        engine_config(
            model,
            fastgen,
            async_scheduling=True,
            skip_tokenizer_init=True,
            num_gpu_blocks_override=100,
            max_model_len=1024,
        )
    )


@pytest.mark.parametrize("shares", [[0.2, 0.9], [0.9, 0.2]], ids=["grows", "shrinks"])
def test_reset_while_the_end_of_a_prompt_is_in_flight(
    tiny_llama: Path, shares: list[float]
) -> None:
    engine = make_engine(tiny_llama)
    try:
        InTurn.shares[:] = shares
        (prompt,) = random_prompts([600])
        engine.add(prompt, max_tokens=8, detokenize=False)
        engine.llm.step()  # schedules the prompt; its result is read in the next step
        engine.core.reset_prefix_cache(reset_running_requests=True)
        engine.run()
        assert engine.stats.compactions == 1
        # Both prompts were profiled; only the second plan was taken.
        assert engine.runtime.head_totals.to_dict()["prompts"] == 2
        assert sum(engine.stats.kept_percents.values()) == 1
    finally:
        engine.close()


@pytest.mark.parametrize("wrong", ["preemptions", "row"])
def test_a_worker_refuses_an_order_for_another_plan(tiny_llama: Path, wrong: str) -> None:
    """Before anything is written: the kernel would read block ids past the row's end."""
    engine = make_engine(tiny_llama)
    try:
        InTurn.shares[:] = [0.9]
        (prompt,) = random_prompts([600])
        engine.add(prompt, max_tokens=8, detokenize=False)
        orders: list[CompactionOrder] = []
        schedule = engine.scheduler.schedule

        def spoiling(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            ordered = output.kv_connector_metadata.compactions
            orders.extend(ordered)
            for number, order in enumerate(ordered):
                changed = (
                    order._replace(new_row=order.new_row[:4])
                    if wrong == "row"
                    else order._replace(preemptions=1)
                )
                ordered[number] = changed
            return output

        engine.scheduler.schedule = spoiling
        positions = engine.runtime._positions.clone()
        with pytest.raises(AssertionError, match=r"the plan needs another|for another plan"):
            engine.run()
        assert len(orders) == 1
        assert torch.equal(engine.runtime._positions, positions)
    finally:
        engine.close()
        gc.collect()
