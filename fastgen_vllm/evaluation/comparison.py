"""Our methods beside the best of the others at the same kept share."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastgen_vllm.evaluation.estimates import (
    Estimate,
    geometric_mean,
    interval,
    mean_interval,
    paired_ratio,
)
from fastgen_vllm.evaluation.results import Results
from fastgen_vllm.evaluation.statistics import (
    KVPRESS,
    PEER,
    Table,
    is_ours,
    kl_by_prompt,
    label,
    rank,
    text_means,
)

#: KL of every text, by its name; or of every prompt with questions.
Values = dict[str, float]


class Comparison(NamedTuple):
    """One of our methods and the peer with the smallest mean KL at its kept share."""

    protocol: str  # continuation, seen, unseen, turns
    method: str
    target: float
    kl: Estimate  # nats, ours
    kl_geometric: float  # the same, geometric mean over texts
    peer: str
    peer_kl: Estimate  # nats
    peer_geometric: float
    ratio: Estimate  # mean of ours over mean of the peer's, paired by text
    below: int  # texts on which ours is smaller


def compare(results: Results) -> list[Comparison]:
    """Compare by protocol, method and share, where a peer has the same texts."""
    comparisons = []
    for protocol, measured in _measured(results).items():
        peers = {key: kl for key, kl in measured.items() if key[0].startswith((KVPRESS, PEER))}
        ours = [key for key in measured if is_ours(key[0]) and key[1] is not None]
        for method, target in sorted(ours, key=lambda key: rank(*key)):
            values = measured[method, target]
            others = {
                name: kl
                for (name, share), kl in peers.items()
                if share == target and kl.keys() == values.keys() and any(kl.values())
            }
            if others and target is not None:
                best = min(others, key=lambda name: np.mean(list(others[name].values())))
                comparisons.append(_compared(protocol, method, target, values, best, others[best]))
    return comparisons


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per comparison."""
    ours, theirs = ("KL, nats", "geometric"), ("its KL", "its geometric")
    header = ("protocol", "method", *ours, "best peer", *theirs, "ratio", "below it")
    rows = tuple(
        (
            c.protocol,
            label(c.method, c.target),
            interval(c.kl),
            f"{c.kl_geometric:.3g}",
            c.peer,
            interval(c.peer_kl),
            f"{c.peer_geometric:.3g}",
            interval(c.ratio),
            f"{c.below} of {c.ratio.count}",
        )
        for c in comparisons
    )
    return Table(header, rows)


def _compared(
    protocol: str, method: str, target: float, ours: Values, peer: str, theirs: Values
) -> Comparison:
    above, below = list(ours.values()), [theirs[text] for text in ours]
    return Comparison(
        protocol=protocol,
        method=method,
        target=target,
        kl=mean_interval(above),
        kl_geometric=geometric_mean(above),
        peer=peer,
        peer_kl=mean_interval(below),
        peer_geometric=geometric_mean(below),
        ratio=paired_ratio(above, below),
        below=sum(one < other for one, other in zip(above, below, strict=True)),
    )


def _measured(results: Results) -> Mapping[str, dict[tuple[str, float | None], Values]]:
    """KL by protocol, then method and target, then text."""
    measured: dict[str, dict[tuple[str, float | None], Values]] = defaultdict(dict)
    texts = defaultdict(list)
    for row in results.divergence:
        texts[row.method, row.target].append((row.text, row.kl))
    for key, positions in texts.items():
        measured["continuation"][key] = text_means(positions)
    answers = defaultdict(list)
    for answer in results.retrieval:
        answers[answer.protocol, answer.method, answer.target].append(answer)
    for (protocol, method, target), rows in answers.items():
        measured[protocol][method, target] = kl_by_prompt(rows)
    return measured
