"""Our methods beside the best peer at the same share."""

import pytest

from fastgen_vllm.evaluation.comparison import compare, comparison_table
from fastgen_vllm.evaluation.estimates import mean_interval, paired_ratio
from fastgen_vllm.evaluation.results import Results
from tests.evaluation.test_statistics import divergence, retrieval

OURS = [0.1, 0.2, 0.6]
KL = {
    ("balanced", 0.25): OURS,
    ("kvpress SnapKV", 0.25): [0.9, 0.8, 0.7],
    ("peer DefensiveKV", 0.25): [0.2, 0.4, 0.5],
    ("bound KVzip", 0.25): [0.01, 0.01, 0.01],
    ("kvpress SnapKV", 0.5): [0.0, 0.0, 0.1],
    ("balanced", None): [0.3, 0.3, 0.3],
}
ROWS = [
    divergence(method, target, text=f"text {number}", kl=[value, value])
    for (method, target), values in KL.items()
    for number, value in enumerate(values)
]


def test_the_best_is_the_one_with_the_smallest_mean_at_that_share() -> None:
    """Bounds are not peers, and what has no share is compared with nobody."""
    (found,) = compare(Results(divergence=ROWS))
    theirs = KL["peer DefensiveKV", 0.25]
    assert (found.protocol, found.method, found.target) == ("continuation", "balanced", 0.25)
    assert found.peer == "peer DefensiveKV"
    assert found.kl == mean_interval(OURS) and found.peer_kl == mean_interval(theirs)
    assert found.ratio == paired_ratio(OURS, theirs)
    assert (found.below, found.ratio.count) == (2, 3)


def test_pairs_are_of_the_same_texts() -> None:
    """In whatever order they were measured; a peer that lacks a text is no peer."""
    assert compare(Results(divergence=ROWS[::-1]))[0].ratio.mean == pytest.approx(9 / 11)
    without = [r for r in ROWS if (r.method, r.text) != ("peer DefensiveKV", "text 0")]
    assert compare(Results(divergence=without))[0].peer == "kvpress SnapKV"


def test_every_protocol_is_compared_by_prompt() -> None:
    rows = [
        retrieval(method, 0.25, True, protocol=protocol, context=f"{protocol} {n}", kl=kl * (n + 1))
        for protocol in ("seen", "turns")
        for method, kl in (("balanced", 0.1), ("peer AhaKV", 0.2))
        for n in range(2)
    ]
    seen, turns = compare(Results(retrieval=rows))
    assert (seen.protocol, turns.protocol) == ("seen", "turns")
    assert seen.ratio.mean == pytest.approx(0.5) and seen.below == seen.ratio.count == 2


def test_the_table_says_how_often() -> None:
    table = comparison_table(compare(Results(divergence=ROWS)))
    (row,) = table.rows
    assert row[:2] == ("continuation", "balanced at 25 %")
    assert (row[4], row[-1]) == ("peer DefensiveKV", "2 of 3")
    assert (row[3], row[6]) == (f"{0.012 ** (1 / 3):.3g}", f"{0.04 ** (1 / 3):.3g}")
    assert {len(row), len(table.header)} == {9}


def test_without_peers_there_is_nothing_to_compare() -> None:
    assert compare(Results(divergence=ROWS[:3])) == []
    assert compare(Results()) == []
