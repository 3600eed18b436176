"""What people may look at: heads over all prompts, running requests, the plan of one prompt.

Collected in the worker, in plain types, because it leaves the process by vLLM's ``collective_rpc``.
"""

from typing import Any

import torch
from torch import Tensor

from fastgen_vllm.geometry import CacheGeometry
from fastgen_vllm.lifecycle import CompactionPlan


class HeadTotals:
    """Sums over all prompts that were planned, per layer and head.

    Adding a plan waits for no device.
    """

    def __init__(self, geometry: CacheGeometry, device: torch.device) -> None:
        self._shape = (geometry.num_layers, geometry.num_kv_heads)
        self._device = device
        self._prompts = 0
        self._kept = torch.zeros(self._shape, dtype=torch.float64, device=device)
        self._recovery = torch.zeros(self._shape, dtype=torch.float64, device=device)
        self._policies: dict[str, Tensor] = {}  # [L, H] int64, prompts, by policy

    def add(self, plan: CompactionPlan) -> None:
        """Count one plan."""
        self._prompts += 1
        self._kept += plan.choice.keep.float().mean(-1)
        self._recovery += plan.profile.recovery(plan.choice.keep)
        for number, policy in enumerate(plan.choice.policies):
            if policy.name not in self._policies:
                self._policies[policy.name] = torch.zeros(
                    self._shape, dtype=torch.int64, device=self._device
                )
            self._policies[policy.name] += plan.choice.index == number

    def to_dict(self) -> dict[str, Any]:
        """Means, and how many prompts chose each policy, ``[L][H]``."""
        prompts = max(1, self._prompts)
        return {
            "prompts": self._prompts,
            "kept_share": (self._kept / prompts).tolist(),
            "recovery": (self._recovery / prompts).tolist(),
            "policies": {name: count.tolist() for name, count in self._policies.items()},
        }


class ExpectedPlans:
    """Plans that somebody waits for, by the request id that the client knows."""

    def __init__(self) -> None:
        self._expected: dict[str, CompactionPlan | None] = {}

    def expect(self, request_id: str) -> None:
        """Keep the plan of this request when it is made."""
        self._expected[request_id] = None

    def note(self, internal_id: str, plan: CompactionPlan) -> None:
        """A plan was made; keep it if it is expected."""
        request_id = external_id(internal_id)
        if request_id in self._expected:
            self._expected[request_id] = plan

    def take(self, request_id: str) -> CompactionPlan | None:
        """The plan, if it was made; it is expected no longer."""
        return self._expected.pop(request_id, None)


def external_id(internal_id: str) -> str:
    """The id that the client knows; vLLM hangs a random part on it."""
    return internal_id.rpartition("-")[0]


def described(plan: CompactionPlan) -> dict[str, Any]:
    """A plan in plain types, everything ``[L][H]``: policy, recovery, sorted kept positions."""
    choice = plan.choice
    names = [policy.name for policy in choice.policies]
    return {
        "policy": [[names[number] for number in layer] for layer in choice.index.tolist()],
        "recovery": plan.profile.recovery(choice.keep).tolist(),
        "kept": [[head.nonzero()[:, 0].tolist() for head in layer] for layer in choice.keep],
    }
