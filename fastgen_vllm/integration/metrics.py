"""Prometheus metrics: counted by the scheduler, exposed by the API server on ``/metrics``.

vLLM has no field of its own for a plugin's statistics, so ours ride in
``SchedulerStats.kv_connector_stats`` and are taken out by our stat logger, which vLLM calls
before its own loggers. They are sent only when ``fastgen-vllm serve`` said so, because
without that stat logger vLLM would hand them to a connector that is not there.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client import Counter, Histogram
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from fastgen_vllm.runtime.messages import PlanReport, Uncompacted

STATS_KEY = "fastgen"


@dataclass
class FastGenStats:
    """What happened since the last time statistics were sent: bounded, should nobody ask."""

    compactions: int = 0
    blocks_given_back: int = 0
    kept_percents: dict[int, int] = field(default_factory=dict)  # plans, by their kept share
    heads_by_policy: dict[str, int] = field(default_factory=dict)
    uncompacted: dict[str, int] = field(default_factory=dict)
    profiling_seconds: float = 0.0
    compaction_seconds: float = 0.0

    def observe_plan(self, plan: PlanReport) -> None:
        """Count one plan."""
        percent = round(100 * plan.kept_share)
        self.kept_percents[percent] = self.kept_percents.get(percent, 0) + 1
        for policy, heads in plan.heads_by_policy.items():
            self.heads_by_policy[policy] = self.heads_by_policy.get(policy, 0) + heads

    @property
    def kept_share(self) -> float:
        """Mean of the plans, to half a percent; 1 without any."""
        plans = sum(self.kept_percents.values())
        total = sum(percent * count for percent, count in self.kept_percents.items())
        return total / plans / 100 if plans else 1.0

    def count_uncompacted(self, reason: Uncompacted) -> None:
        """Count one request that ended uncompacted."""
        self.uncompacted[reason.value] = self.uncompacted.get(reason.value, 0) + 1

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return self == FastGenStats()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, as vLLM's transport wants them."""
        return asdict(self)


class FastGenStatLogger(StatLoggerBase):
    """Feeds the ``fastgen_*`` metrics of one engine.

    Registered under ``vllm.stat_logger_plugins``; idle when FastGen is off.
    """

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        from fastgen_vllm.integration.options import wants_metrics

        self._metrics = _Metrics.get() if wants_metrics(vllm_config) else None
        self._engine = str(engine_index)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        if self._metrics is None or scheduler_stats is None:
            return
        payload = scheduler_stats.kv_connector_stats
        if payload is not None and STATS_KEY in payload:
            scheduler_stats.kv_connector_stats = None
            self._metrics.add(FastGenStats(**payload[STATS_KEY]), self._engine)

    def log_engine_initialized(self) -> None:
        """Nothing to log; the worker prints the start-up line."""


class _Metrics:
    """The Prometheus metrics, once per process."""

    _instance: "_Metrics | None" = None

    @classmethod
    def get(cls) -> "_Metrics":
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def __init__(self) -> None:
        self.compactions = Counter(
            "fastgen_compactions", "Requests moved to per-head block tables.", ["engine"]
        )
        self.blocks = Counter(
            "fastgen_blocks_given_back",
            "Blocks that compaction returned, less those that it took.",
            ["engine"],
        )
        self.kept = Histogram(
            "fastgen_kept_share",
            "Kept prompt tokens over prompt tokens, averaged over heads, per request.",
            ["engine"],
            buckets=[share / 20 for share in range(1, 21)],
        )
        self.heads = Counter(
            "fastgen_heads", "Heads by the policy chosen for them.", ["engine", "policy"]
        )
        self.uncompacted = Counter(
            "fastgen_uncompacted_requests", "Requests that ended uncompacted.", ["engine", "reason"]
        )
        self.profiling = Counter(
            "fastgen_profiling_seconds", "Time spent profiling and choosing.", ["engine"]
        )
        self.compaction = Counter(
            "fastgen_compaction_seconds", "Time spent copying kept tokens.", ["engine"]
        )

    def add(self, stats: FastGenStats, engine: str) -> None:
        self.compactions.labels(engine).inc(stats.compactions)
        self.blocks.labels(engine).inc(stats.blocks_given_back)
        for percent, plans in stats.kept_percents.items():
            for _ in range(plans):
                self.kept.labels(engine).observe(percent / 100)
        for policy, heads in stats.heads_by_policy.items():
            self.heads.labels(engine, policy).inc(heads)
        for reason, requests in stats.uncompacted.items():
            self.uncompacted.labels(engine, reason).inc(requests)
        self.profiling.labels(engine).inc(stats.profiling_seconds)
        self.compaction.labels(engine).inc(stats.compaction_seconds)
