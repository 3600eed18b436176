"""A policy of your own, on the engine.

    python examples/own_policy.py                     # offline: what it keeps of a text
    python examples/own_policy.py serve --port 9000   # a server; any option of fastgen-vllm serve
    PYTHONPATH=examples fastgen-vllm eval --preset loud.yaml   # that says policy: own_policy:Loud

Needs what ``make setup`` installs.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy import Policy
from fastgen_vllm.profile import PromptProfile


@dataclass(frozen=True)
class Loud(Policy):
    """Keeps the most recent tokens, and those that got more attention than most.

    Attributes:
        least: attention that a token must get, in even shares of its head.
        recent: how many recent tokens stay.
    """

    least: float = 0.25
    recent: int = 64

    @property
    def name(self) -> str:
        return "loud"

    def keep(self, profile: PromptProfile) -> Tensor:
        # [L, H, N]: every head decides for itself.
        loud = profile.average > self.least * profile.average.mean(-1, keepdim=True)
        oldest = profile.num_tokens - self.recent
        return loud | (torch.arange(profile.num_tokens) >= oldest)

    # The rest is about generated tokens, and may be left out.

    @property
    def rule(self) -> StoreRule:
        return StoreRule.BY_VALUE  # a new token takes the slot of the one with least attention

    def window(self, num_tokens: int) -> int:
        return self.recent


#: Changes to the preset `balanced`. The engine may be another process: it imports the class by its
#: path, from `sys.path`, where Python puts the folder of the script that it runs.
OPTIONS = {"name": "loud", "policy": "own_policy:Loud"}


def offline(model: str | None) -> None:
    """Answer one prompt, and print what was kept of it."""
    from vllm import LLM, SamplingParams

    import fastgen_vllm
    from fastgen_vllm.models.embedded import ensure_default_model

    options = fastgen_vllm.llm_options(
        "balanced",
        additional_config={"fastgen": OPTIONS},
        max_model_len=2048,
        kv_cache_memory_bytes=2**27,
        enforce_eager=True,  # starts sooner, answers more slowly
    )
    llm = LLM(model or str(ensure_default_model()), **options)
    text = topics["specialnames"][:3000]
    (answer,) = llm.generate(f"{text}\n\nIn short:", SamplingParams(temperature=0, max_tokens=24))
    (heads,) = llm.collective_rpc("fastgen_heads")  # of every worker, and there is one
    chosen = Counter({name: sum(map(sum, n)) for name, n in heads["policies"].items()})
    shares = [share for layer in heads["kept_share"] for share in layer]
    print(f"answer: {answer.outputs[0].text!r}")
    print(f"heads: {', '.join(f'{name} {n}' for name, n in sorted(chosen.items()))}")
    print(f"kept: {sum(shares) / len(shares):.2f} of {len(answer.prompt_token_ids)} prompt tokens")


def serve(arguments: list[str]) -> int:
    """Run the server; what the user gives goes before."""
    from fastgen_vllm.server import cli

    ours = [
        part
        for name, value in OPTIONS.items()
        for part in (f"--additional-config.fastgen.{name}", str(value))
    ]
    return cli.main(["serve", *ours, *arguments])


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory or hub name (default: the embedded model)")
    offline(parser.parse_args().model)
