"""A request's life in the worker's runtime, on any device: the same numbers on all."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.config import load_config
from fastgen_vllm.geometry import CacheGeometry
from fastgen_vllm.ops.layout import to_cuda_layout
from fastgen_vllm.profile.replay import BLOCK, Rotation
from fastgen_vllm.request import RequestOptions
from fastgen_vllm.runtime import FastGenRuntime
from fastgen_vllm.runtime.messages import CompactionOrder

L, H, G, D, S, B = 2, 2, 2, 32, 32, 24
PROMPT, NEW = 150, 70
VOCABULARY = 50


class Life:
    """One request in a runtime on either device: the same numbers on both.

    Args:
        preset: a preset's name.
    """

    def __init__(self, preset: str, device: torch.device) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.device = device
        arena = self.normal(L, B, H, 2 * S, D)
        table = torch.arange(VOCABULARY, dtype=torch.int32) % 3
        config = load_config(preset)
        observe = config.observe if config.observe == "replay" else 40
        config = config.model_copy(update={"force": True, "observe": observe})
        angle = torch.arange(BLOCK + 1)[:, None] * 100.0 ** -torch.linspace(0, 1, D // 2)
        rotation = Rotation.of(angle.cos(), angle.sin(), interleaved=False)
        cache = arena if device.type == "cpu" else to_cuda_layout(arena)
        geometry = CacheGeometry(L, H, G, D, S, B)
        self.runtime = FastGenRuntime(
            *(config, geometry, cache.to(device), table, 4, ops.decode_attention),
            rotation=Rotation(rotation.table.to(device), rotation.interleaved),
        )
        self.prompt = torch.randint(VOCABULARY, (PROMPT,), generator=self.random).tolist()
        self.runtime.track("r", self.prompt, RequestOptions())

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def step(self, first: int, tokens: list[int], blocks: list[int]) -> list[Tensor]:
        """Compute tokens that follow ``first`` stored ones; return outputs by layer."""
        row = torch.tensor([blocks], dtype=torch.int32).to(self.device)
        ids = torch.tensor(tokens, dtype=torch.int32).to(self.device)
        work = self.runtime.plan_step(["r"], [0, len(tokens)], [first + len(tokens)], row, ids)
        outputs = []
        for layer in range(L):
            query = self.normal(len(tokens), H * G, D).to(self.device)
            key, value = (self.normal(len(tokens), H, D).to(self.device) for _ in range(2))
            output = torch.zeros_like(query)
            if work is not None and work.observed:
                self.runtime.observe(layer, query, D**-0.5, work)
            if work is not None and work.decode is not None:
                self.runtime.store(layer, key, value, work.decode)
                self.runtime.attend(layer, query, output, D**-0.5, work.decode)
                outputs.append(output)
        return outputs


def live(life: Life, reads: Callable[[], int]) -> Iterator[object]:
    """Everything that a request's life yields, in order."""
    old = list(range(5, 10))
    life.step(0, life.prompt[:100], old)
    assert life.runtime.finish_step() is None
    life.step(100, life.prompt[100:], old)
    report = life.runtime.finish_step()
    assert report is not None
    yield report.plans
    life.step(PROMPT, [7], old)  # before its compaction it decodes once over stock pages
    size = report.plans[0].size
    new = list(range(10, 10 + size.blocks(PROMPT + NEW)))
    order = CompactionOrder("r", 0, old, new[: size.blocks(PROMPT + 1)], PROMPT + 1)
    life.runtime.compact(order)
    life.runtime.finish_step()
    for position in range(PROMPT + 1, PROMPT + NEW):
        before = reads()
        outputs = life.step(position, [position % VOCABULARY], new)
        assert life.runtime.finish_step() is None
        assert reads() == before, "the host waited for the device in a decode step"
        yield outputs
    yield life.runtime.kept_positions("r", new)
