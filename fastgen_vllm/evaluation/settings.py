"""What an evaluation is asked to do."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from fastgen_vllm.evaluation import contexts, ruler
from fastgen_vllm.evaluation.tasks import TASKS

CONTINUATION = "continuation"
PROTOCOLS = (CONTINUATION, contexts.SEEN, contexts.UNSEEN, contexts.TURNS)
RULER = "ruler"  # stands for all its tasks
RETRIEVAL = (*contexts.TASKS, *ruler.TASKS)


@dataclass(frozen=True)
class Settings:
    """Options of ``fastgen-vllm eval``.

    Attributes:
        model: directory or hub name; None is the embedded default.
        presets: presets or YAML files to measure as they are.
        keep: kept shares at which every preset of policy ``coverage``, and every peer, is
            measured as well.
        recovery: thresholds T at which every preset is measured as well.
        ablation: whether to measure the paper's ladder without each of its rungs.
        peers: whether to measure other methods: those of kvpress, and more.
        protocols: forced continuations of passages, and questions about long prompts that are
            seen (in the prompt), unseen (after it), or asked in later turns.
        texts: ``KIND=FILE`` each; none takes the built-in texts.
        lengths: prompt lengths of forced continuations, in tokens.
        per_kind: passages of each kind and length.
        continuation: forced tokens after each passage.
        retrieval_lengths: prompt lengths of retrieval questions, in tokens.
        samples: prompts of each protocol and length, and of each task where it is in the prompt.
        retrieval: retrieval tasks; ``ruler`` stands for RULER's eleven.
        tasks: public benchmarks, by free generation.
        problems: problems of each benchmark.
        seed: of passages, questions and resampling.
        found: share of every prompt that the prefix cache has when it is compressed. 0 is none:
            requests are compressed as if they were alone.
        found_by: who computed that share: a request that was compressed, or one that was not.
        dtype: of weights and cache.
        pool_gib: KV pool of the engine.
    """

    model: str | None = None
    presets: tuple[str, ...] = ("balanced",)
    keep: tuple[float, ...] = (0.1, 0.25, 0.5)
    recovery: tuple[float, ...] = ()
    ablation: bool = False
    peers: bool = False
    protocols: tuple[str, ...] = PROTOCOLS
    texts: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (1024, 2048)
    per_kind: int = 2
    continuation: int = 128
    retrieval_lengths: tuple[int, ...] = (1024,)
    samples: int = 3
    retrieval: tuple[str, ...] = contexts.TASKS
    tasks: tuple[str, ...] = ()
    problems: int = 20
    seed: int = 0
    found: float = 0.0
    found_by: str = "fastgen"
    dtype: str = "float32"
    pool_gib: float = 2.0

    def quick(self) -> "Settings":
        """A smaller run: whatever was left at its default is made small."""
        small: dict[str, Any] = dict(
            keep=(0.25,),
            lengths=(512,),
            per_kind=1,
            continuation=64,
            retrieval_lengths=(768,),
            samples=1,
        )
        default = Settings()
        left = {name for name in small if getattr(self, name) == getattr(default, name)}
        return replace(self, **{name: small[name] for name in left})

    def checked(self) -> "Settings":
        """Return itself.

        Raises:
            ValueError: a value is out of range; names option, value and legal set.
        """
        for option, shares in (("--keep", self.keep), ("--recovery", self.recovery)):
            for share in shares:
                _require(0 < share <= 1, option, share, "above 0 and at most 1")
        if self.peers:
            for share in self.keep:
                _require(share < 1, "--keep", share, "below 1 with --peers")
        for length in (*self.lengths, *self.retrieval_lengths):
            _require(length >= 256, "--lengths, --retrieval-lengths", length, "at least 256")
        _require(self.continuation >= 2, "--continuation", self.continuation, "at least 2")
        for option, number in (
            ("--per-kind", self.per_kind),
            ("--samples", self.samples),
            ("--problems", self.problems),
        ):
            _require(number >= 1, option, number, "at least 1")
        _require(0 <= self.found < 1, "--found", self.found, "at least 0 and below 1")
        _require(self.pool_gib > 0, "--pool-gib", self.pool_gib, "above 0")
        for protocol in self.protocols:
            _require(
                protocol in PROTOCOLS, "--protocols", protocol, f"one of {', '.join(PROTOCOLS)}"
            )
        for task in self.retrieval:
            legal = (*RETRIEVAL, RULER)
            _require(task in legal, "--retrieval", task, f"one of {', '.join(legal)}")
        for task in self.tasks:
            _require(task in TASKS, "--tasks", task, f"one of {', '.join(TASKS)}")
        return self

    @property
    def retrieval_tasks(self) -> tuple[str, ...]:
        """Retrieval tasks by name, each once."""
        named = [ruler.TASKS if task == RULER else (task,) for task in self.retrieval]
        return tuple(dict.fromkeys(task for tasks in named for task in tasks))

    def asked(self) -> dict[str, Any]:
        """Everything that decides what a part of the evaluation means."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _require(holds: bool, option: str, value: object, legal: str) -> None:
    if not holds:
        raise ValueError(f"{option} {value}: must be {legal}.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
