"""Totals of this server, from the metrics that it exposes anyway."""

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from fastgen_vllm.api.schema import Totals


class Counters:
    """Samples of a scrape; engines are added up."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._samples: dict[str, list[Sample]] = {}
        for metric in metrics:
            for sample in metric.samples:
                self._samples.setdefault(sample.name, []).append(sample)

    def total(self, name: str) -> float:
        """Sum over all labels; 0 if there is no such metric."""
        return sum(sample.value for sample in self._samples.get(name, ()))

    def largest(self, name: str) -> float:
        """Largest over all labels; 0 if there is no such metric."""
        return max((sample.value for sample in self._samples.get(name, ())), default=0.0)

    def by_label(self, name: str, label: str) -> dict[str, int]:
        """Sums by the values of a label."""
        sums: dict[str, int] = {}
        for sample in self._samples.get(name, ()):
            value = sample.labels[label]
            sums[value] = sums.get(value, 0) + int(sample.value)
        return sums

    def totals(self) -> Totals:
        """What was counted since the server started."""
        planned = self.total("fastgen_kept_share_count")
        return Totals(
            compactions=int(self.total("fastgen_compactions_total")),
            blocks_given_back=int(self.total("fastgen_blocks_given_back_total")),
            kept_share=self.total("fastgen_kept_share_sum") / planned if planned else None,
            heads_by_policy=self.by_label("fastgen_heads_total", "policy"),
            uncompacted=self.by_label("fastgen_uncompacted_requests_total", "reason"),
            preemptions=int(self.total("vllm:num_preemptions_total")),
            profiling_seconds=self.total("fastgen_profiling_seconds_total"),
            compaction_seconds=self.total("fastgen_compaction_seconds_total"),
        )
