"""Results without any engine."""

from fastgen_vllm.benchmark.results import Load, Results, Row, Sample, Timeline


def row(engine: str, number: int, load: Load | None = None, **metrics: float) -> Row:
    timeline = Timeline(seconds=[0.0, 1.0], running=[1, 2], blocks=[3, 4])
    return Row(engine, number, Sample(load=load or Load(), metrics=metrics, timeline=timeline))


def two_sides() -> Results:
    """Three rounds of a single load."""
    stock = [row("stock", n, output_throughput=x, preemptions=0, threads=1)
             for n, x in enumerate((100.0, 80.0, 90.0), 1)]  # fmt: skip
    ours = [row("fastgen", n, output_throughput=x, preemptions=4, threads=1)
            for n, x in enumerate((150.0, 180.0, 135.0), 1)]  # fmt: skip
    return Results({"engines": ["stock", "fastgen"]}, [*ours, *stock], "stock")


def sweep() -> Results:
    """One round of two loads."""
    rows = [
        row(engine, 1, Load(concurrency=n), output_throughput=factor * n, ttft_ms=5.0, tpot_ms=2.0)
        for engine, factor in (("stock", 10.0), ("fastgen", 15.0))
        for n in (1, 4)
    ]
    return Results({"engines": ["stock", "fastgen"]}, rows, "stock")
