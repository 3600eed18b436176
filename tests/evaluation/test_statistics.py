"""Means, intervals and tables of an evaluation."""

import pytest

from fastgen_vllm.evaluation.estimates import Estimate, share_interval
from fastgen_vllm.evaluation.results import (
    Divergence,
    Heads,
    Memory,
    Results,
    Retrieval,
    Task,
)
from fastgen_vllm.evaluation.statistics import (
    able_tasks,
    is_ours,
    markdown,
    summarize,
    summary_table,
)


def divergence(
    method: str = "balanced",
    target: float | None = None,
    *,
    kept_share: float = 0.5,
    text: str = "a",
    kind: str = "prose",
    prompt_tokens: int = 1024,
    kl: list[float],
    nll: list[float] | None = None,
    full_nll: list[float] | None = None,
    agree: list[bool] | None = None,
) -> Divergence:
    return Divergence(
        method=method,
        target=target,
        kept_share=kept_share,
        text=text,
        kind=kind,
        prompt_tokens=prompt_tokens,
        kl=kl,
        nll=[1.0] * len(kl) if nll is None else nll,
        full_nll=[1.0] * len(kl) if full_nll is None else full_nll,
        agree=[True] * len(kl) if agree is None else agree,
    )


def retrieval(
    method: str,
    target: float | None,
    correct: bool,
    *,
    protocol: str = "unseen",
    context: str = "unseen-facts-1024-0",
    task: str = "keys",
    prompt_tokens: int = 1024,
    kl: float = 0.5,
    nll: float = 1.0,
    full_nll: float = 1.0,
    kept_share: float = 0.5,
) -> Retrieval:
    return Retrieval(
        method=method,
        target=target,
        kept_share=kept_share,
        protocol=protocol,
        context=context,
        kind="prose",
        task=task,
        prompt_tokens=prompt_tokens,
        question=0,
        correct=correct,
        kl=[kl, kl],
        nll=[nll, nll],
        full_nll=[full_nll, full_nll],
    )


def task_row(method: str, target: float | None, correct: bool, task: str = "gsm8k") -> Task:
    return Task(
        method=method,
        target=target,
        kept_share=0.5,
        task=task,
        sample="0",
        prompt_tokens=100,
        correct=correct,
    )


def test_who_is_ours() -> None:
    assert is_ours("balanced")
    assert not is_ours("full")
    for theirs in ("kvpress SnapKV", "peer DefensiveKV", "bound KVzip"):
        assert not is_ours(theirs)


def test_divergence_is_averaged_over_texts_not_positions() -> None:
    # Text a: positions 1 and 3 at one length and 2 at another, mean 2. Text b: mean 6.
    rows = [
        divergence(text="a", kl=[1.0, 3.0], nll=[2.0, 2.0], agree=[True, False]),
        divergence(text="a", prompt_tokens=4096, kl=[2.0], nll=[2.0], agree=[True]),
        divergence(text="b", kind="code", kept_share=0.8, kl=[6.0], nll=[5.0], full_nll=[4.0]),
    ]
    (summary,) = summarize(Results(divergence=rows))
    score = summary.divergence
    assert score is not None
    assert score.kl == Estimate(4.0, 2.0, 6.0, 2)
    assert score.kept_share == summary.kept_share == pytest.approx(0.6)
    assert [(s.kind, s.kl.mean, s.kl.count) for s in score.by_kind] == [
        ("code", 6.0, 1),
        ("prose", 2.0, 1),
    ]
    # NLL (2 + 5) / 2 over (1 + 4) / 2, not the mean of 2 / 1 and 5 / 4.
    assert score.nll_increase.mean == pytest.approx(0.4)
    assert score.nll_increase.low == pytest.approx(0.25)
    assert score.nll_increase.high == pytest.approx(1.0)
    assert score.agreement.mean == pytest.approx((2 / 3 + 1) / 2)


def test_continuations_without_positions_are_no_texts() -> None:
    (summary,) = summarize(Results(divergence=[divergence(kl=[])]))
    assert summary.divergence is None


def test_retrieval_is_scored_per_task_pooled_and_per_length() -> None:
    rows = [
        retrieval("paper", None, True, nll=1.0, kl=1.0, kept_share=0.4),
        retrieval("paper", None, False, nll=2.0, kl=3.0, kept_share=0.4),
        retrieval(
            "paper", None, True, prompt_tokens=512, context="b", nll=6.0, kl=8.0, kept_share=0.7
        ),
        retrieval("paper", None, False, task="counting"),
        retrieval("paper", None, False, protocol="seen", context="c"),
    ]
    (summary,) = summarize(Results(retrieval=rows, tasks=[task_row("paper", None, True)]))
    assert [(s.protocol, s.task, s.prompt_tokens) for s in summary.retrieval] == [
        ("seen", "keys", None),
        ("seen", "keys", 1024),
        ("unseen", "counting", None),
        ("unseen", "counting", 1024),
        ("unseen", "keys", None),
        ("unseen", "keys", 512),
        ("unseen", "keys", 1024),
    ]
    *_, pooled, short, long = summary.retrieval
    assert pooled.accuracy == share_interval(2, 3)
    assert pooled.nll_change == pytest.approx((0 + 1 + 5) / 3)
    assert pooled.kl == Estimate(5.0, 2.0, 8.0, 2), "the two of one prompt are one sample"
    assert pooled.kept_share == pytest.approx(0.5)
    assert (short.accuracy, short.nll_change) == (share_interval(1, 1), 5.0)
    assert (long.accuracy, long.nll_change) == (share_interval(1, 2), 0.5)
    assert [(s.task, s.accuracy) for s in summary.tasks] == [("gsm8k", share_interval(1, 1))]
    assert summary.divergence is None


def test_a_prompt_counts_its_tasks_alike() -> None:
    """However many questions there are of each."""
    rows = [
        retrieval("paper", None, True, kl=1.0),
        retrieval("paper", None, True, kl=3.0),
        retrieval("paper", None, True, task="copy", kl=6.0),
        retrieval("paper", None, True, context="b", kl=8.0),
    ]
    (summary,) = summarize(Results(retrieval=rows))
    (score,) = summary.protocols
    assert (score.protocol, score.kl) == ("unseen", Estimate(6.0, 4.0, 8.0, 2))


def test_what_the_model_cannot_do_is_not_scored() -> None:
    rows = [
        retrieval("full", None, False, task="counting"),
        retrieval("full", None, True),
        retrieval("full", None, False, context="b"),
        retrieval("paper", None, True, task="counting"),
        retrieval("paper", None, False),
    ]
    assert able_tasks(rows) == {("unseen", "keys")}
    assert able_tasks(rows[3:]) == {("unseen", "keys"), ("unseen", "counting")}
    full, paper = summarize(Results(retrieval=rows))
    assert full.protocols[0].accuracy == share_interval(1, 2)
    assert paper.protocols[0].accuracy == share_interval(0, 1)
    (beyond,) = summarize(Results(retrieval=rows[:1]))
    assert beyond.protocols[0].accuracy is None
    assert summary_table([beyond]).header == ("method", "kept %", "unseen KL")


def test_order_is_full_ours_theirs_with_large_targets_first() -> None:
    keys = [
        ("kvpress snapkv", 0.2),
        ("kvpress h2o", 0.5),
        ("zeta", 0.2),
        ("zeta", 0.5),
        ("zeta", None),
        ("balanced", None),
        ("full", None),
        ("kvpress snapkv", 0.7),
    ]
    summaries = summarize(Results(tasks=[task_row(*key, correct=True) for key in keys]))
    assert [(s.method, s.target) for s in summaries] == [
        ("full", None),
        ("balanced", None),
        ("zeta", None),
        ("zeta", 0.5),
        ("zeta", 0.2),
        ("kvpress h2o", 0.5),
        ("kvpress snapkv", 0.7),
        ("kvpress snapkv", 0.2),
    ]


def test_rows_without_scores_still_count_for_memory() -> None:
    common = {"method": "paper", "target": None, "text": "a", "prompt_tokens": 8}
    summaries = summarize(
        Results(
            memory=[Memory(kept_share=0.2, series=[], **common)],
            heads=[Heads(kept_share=0.4, kept=[[0.4]], policy=[["full"]], **common)],
        )
    )
    assert [s.kept_share for s in summaries] == [pytest.approx(0.3)]


def test_table_has_the_columns_that_have_data() -> None:
    rows = [
        divergence("balanced", 0.3, kept_share=0.3, kl=[0.5], nll=[1.125], agree=[True]),
        divergence("full", kept_share=1.0, kl=[0.0]),
    ]
    assert summary_table(summarize(Results(divergence=rows))) == (
        ("method", "kept %", "KL, nats", "geometric", "NLL +%", "same top-1 %"),
        (
            ("full", "100.0", "0 [0, 0]", "1e-09", "+0.00", "100.0"),
            ("balanced at 30 %", "30.0", "0.5 [0.5, 0.5]", "0.5", "+12.50", "100.0"),
        ),
    )
    scored = Results(
        retrieval=[retrieval("balanced", None, True), retrieval("balanced", None, False)],
        tasks=[task_row("full", None, True)],
    )
    assert summary_table(summarize(scored)) == (
        ("method", "kept %", "unseen KL", "unseen right %", "gsm8k %"),
        (
            ("full", "50.0", "", "", "100.0"),
            ("balanced", "50.0", "0.5 [0.5, 0.5]", "50.0", ""),
        ),
    )


def test_table_is_aligned_markdown() -> None:
    rows = [task_row("a|b", 0.125, True), task_row("c", None, True)]
    text = markdown(summary_table(summarize(Results(tasks=rows))))
    assert text.splitlines() == [
        "| method         | kept % | gsm8k % |",
        "| -------------- | -----: | ------: |",
        r"| a\|b at 12.5 % |   50.0 |   100.0 |",
        "| c              |   50.0 |   100.0 |",
    ]


def test_nothing_measured_gives_no_rows() -> None:
    assert summarize(Results()) == []
    assert len(markdown(summary_table([])).splitlines()) == 2
