"""The HTML report: what it shows when, and that it is safe, whole and repeatable."""

import errno
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastgen_vllm.evaluation.report import write_report
from fastgen_vllm.evaluation.results import (
    Divergence,
    Heads,
    Memory,
    MemoryPoint,
    Results,
    Retrieval,
    Task,
)

EVIL = '<script>alert("x")</script> $x^{$ & \'"'
VOID = {"meta", "link", "br", "img", "input", "hr", "line"}
METHODS = (
    ("full", None, 1.0),
    ("balanced", None, 0.55),
    ("coverage", 0.5, 0.5),
    ("coverage", 0.2, 0.2),
    ("kvpress snapkv", 0.5, 0.5),
    ("kvpress snapkv", 0.2, 0.2),
)


class Page(HTMLParser):
    """A parsed report; checks that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


def divergence(lengths: tuple[int, ...] = (512, 2048)) -> list[Divergence]:
    random = np.random.default_rng(0)
    rows = []
    for method, target, share in METHODS:
        for length in lengths:
            for text, kind in (("a", "prose"), ("b", "prose"), ("c", "code")):
                full_nll = random.gamma(2, 1, 40)
                kl = random.gamma(1, 0.1, 40) * (1 - share)
                rows.append(
                    Divergence(
                        method=method,
                        target=target,
                        kept_share=share,
                        text=text,
                        kind=kind,
                        prompt_tokens=length,
                        kl=kl.tolist(),
                        nll=(full_nll + kl).tolist(),
                        full_nll=full_nll.tolist(),
                        agree=(kl < 0.2).tolist(),
                    )
                )
    return rows


def retrieval(tasks: tuple[str, ...] = ("keys", "passkey", "beyond")) -> list[Retrieval]:
    return [
        Retrieval(
            method=method,
            target=target,
            kept_share=share,
            protocol=protocol,
            context=f"{protocol}-{sample}",
            kind="prose",
            task=task,
            prompt_tokens=1024,
            question=0,
            correct=sample < 4 * share and task != "beyond",
            kl=[1.01 - share],
            nll=[2.0 - share],
            full_nll=[1.0],
        )
        for method, target, share in METHODS
        for protocol in ("unseen", "turns")
        for task in tasks
        for sample in range(4)
    ]


def benchmark(sample_count: int = 3) -> list[Task]:
    return [
        Task(
            method=method,
            target=target,
            kept_share=share,
            task="gsm8k",
            sample=str(sample),
            prompt_tokens=100,
            correct=sample == 0,
        )
        for method, target, share in METHODS
        for sample in range(sample_count)
    ]


def memory() -> list[Memory]:
    series = [
        MemoryPoint(generated=step, slots=0.5, pages=0.55, blocks=0.6) for step in (0, 16, 32)
    ]
    return [
        Memory(
            method="balanced",
            target=None,
            kept_share=0.5,
            text="a",
            prompt_tokens=512,
            series=series,
        )
    ]


def heads(policies: tuple[str, ...] = ("coverage", "full")) -> list[Heads]:
    random = np.random.default_rng(1)
    return [
        Heads(
            method="balanced",
            target=None,
            kept_share=0.5,
            text=text,
            prompt_tokens=512,
            kept=random.random((6, 2)).tolist(),
            policy=random.choice(policies, (6, 2)).tolist(),
        )
        for text in ("a", "b")
    ]


def everything() -> Results:
    return Results(
        facts={"date": "2026-03-01", "versions": {"vllm": "0.32.0"}, "seed": 0},
        divergence=divergence(),
        retrieval=retrieval(),
        tasks=benchmark(),
        memory=memory(),
        heads=heads(),
    )


def written(results: Results, tmp_path: Path) -> str:
    path = tmp_path / "report.html"
    write_report(results, path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(everything(), tmp_path_factory.mktemp("report"))


def test_everything_is_shown(whole: str) -> None:
    page = Page(whole)
    assert page.headings == [
        "Circumstances",
        "Summary",
        "Beside the best peer",
        "Divergence against memory",
        "Likelihood of real text against memory",
        "Divergence over the continuation",
        "Divergence of answers against memory",
        "Retrieval against memory",
        "Benchmarks",
        "What every head kept",
        "Policy of every head",
        "What every layer kept",
        "Memory over generation",
        "Divergence by kind of text",
        "Retrieval by prompt length",
        "Benchmark accuracy",
    ]
    assert {"2026-03-01", '{"vllm": "0.32.0"}', "coverage at 20 %"} <= set(page.texts)


def test_plots_have_captions_and_labels(whole: str) -> None:
    page = Page(whole)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    drawings = whole.count('role="img"')
    # Lengths, all texts, three targets, two protocols, two tasks of each, a benchmark, heads,
    # policies, layers, memory.
    assert drawings == 2 + 1 + 3 + 2 + 4 + 1 + 1 + 1 + 1 + 1
    assert len(labels) == drawings + page.tags["table"]
    assert all(labels)
    assert page.tags["figcaption"] == page.tags["figure"] == len(page.headings) - 1


def test_tasks_beyond_the_model_are_named_and_not_scored(whole: str) -> None:
    page = Page(whole)
    (caption,) = [text for text in page.texts if "fewer than half of them" in text]
    assert caption.endswith(": turns beyond; unseen beyond.")
    assert "unseen, keys" in page.texts and "unseen, beyond" not in page.texts
    assert "unseen, beyond, 1024" in page.texts, "its divergence is missing"


def test_nothing_is_loaded_from_elsewhere(whole: str) -> None:
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", whole)
    page = Page(whole)
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "image"}
    targets = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert "@import" not in whole


def test_ids_are_unique_and_found(whole: str) -> None:
    page = Page(whole)
    ids = Counter(value for name, value in page.attributes if name == "id")
    assert max(ids.values()) == 1
    referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', whole)
    assert referred
    assert {link or url for link, url in referred} <= ids.keys()


def test_same_results_give_the_same_bytes(whole: str, tmp_path: Path) -> None:
    again = Results.model_validate_json(everything().model_dump_json())
    assert written(again, tmp_path) == whole


def test_nothing_measured_is_still_a_page(tmp_path: Path) -> None:
    page = Page(written(Results(facts={"model": "m"}), tmp_path))
    assert page.headings == ["Circumstances"]
    assert not page.tags["svg"]
    assert Page(written(Results(), tmp_path)).headings == []


@pytest.mark.parametrize(
    ("results", "headings"),
    [
        (
            Results(divergence=divergence()),
            {
                "Beside the best peer",
                "Divergence against memory",
                "Likelihood of real text against memory",
                "Divergence over the continuation",
                "Divergence by kind of text",
            },
        ),
        (
            Results(retrieval=retrieval()),
            {
                "Beside the best peer",
                "Divergence of answers against memory",
                "Retrieval against memory",
                "Retrieval by prompt length",
            },
        ),
        (Results(tasks=benchmark()), {"Benchmarks", "Benchmark accuracy"}),
        (Results(memory=memory()), {"Memory over generation"}),
        (
            Results(heads=heads()),
            {"What every head kept", "Policy of every head", "What every layer kept"},
        ),
        (Results(heads=heads(("paper",))), {"What every head kept", "What every layer kept"}),
    ],
    ids=["divergence", "retrieval", "tasks", "memory", "heads", "one policy"],
)
def test_plots_appear_with_their_data(results: Results, headings: set[str], tmp_path: Path) -> None:
    page = Page(written(results, tmp_path))
    assert set(page.headings) == headings | {"Summary"}
    assert len(page.headings) == len(set(page.headings))


def test_reference_alone_leaves_no_empty_frames(tmp_path: Path) -> None:
    full = [row for row in divergence() if row.method == "full"]
    page = Page(written(Results(divergence=full), tmp_path))
    assert page.headings == ["Summary", "Divergence by kind of text"]
    assert not page.tags["svg"]


def test_no_divergence_at_all_has_no_place_on_a_log_scale(tmp_path: Path) -> None:
    rows = [row.model_copy(update={"kl": [0.0] * 40}) for row in divergence()]
    page = Page(written(Results(divergence=rows), tmp_path))
    assert "Likelihood of real text against memory" in page.headings
    assert "Divergence against memory" not in page.headings
    assert "Divergence over the continuation" not in page.headings


def test_many_prompt_lengths_are_drawn_together(tmp_path: Path) -> None:
    rows = divergence(lengths=(100, 200, 300, 400, 500))
    assert "All prompt lengths" in Page(written(Results(divergence=rows), tmp_path)).texts


def test_continuations_of_different_length(tmp_path: Path) -> None:
    rows = divergence()
    short = {"kl": [0.1] * 5, "nll": [1.0] * 5, "full_nll": [1.0] * 5, "agree": [True] * 5}
    rows[-1] = rows[-1].model_copy(update=short)
    page = Page(written(Results(divergence=rows), tmp_path))
    assert "Divergence over the continuation" in page.headings


def test_ours_are_emphasised(whole: str) -> None:
    # Four tables with a row for each of three methods, and one with six comparisons.
    assert whole.count('<tr class="ours"><th scope="row">') == 4 * 3 + 6
    assert '<tr class="ours"><th scope="row">kvpress' not in whole
    widths = dict(
        (label, float(width))
        for width, label in re.findall(r'stroke-width="([\d.]+)".*?/></svg>(.*?)</li>', whole)
        if label in ("balanced", "kvpress snapkv")
    )
    assert widths["balanced"] > widths["kvpress snapkv"]


def test_everything_from_results_is_escaped(tmp_path: Path) -> None:
    names = {"method": EVIL, "text": EVIL}
    results = Results(
        facts={EVIL: EVIL, "nested": {EVIL: [EVIL]}},
        divergence=[r.model_copy(update={**names, "kind": EVIL}) for r in divergence()],
        retrieval=[r.model_copy(update={"method": EVIL, "task": EVIL}) for r in retrieval()],
        tasks=[r.model_copy(update={"method": EVIL, "task": EVIL}) for r in benchmark()],
        memory=[r.model_copy(update=names) for r in memory()],
        heads=[r.model_copy(update={**names, "policy": [[EVIL, "full"]] * 6}) for r in heads()],
    )
    text = written(results, tmp_path)
    page = Page(text)
    assert not page.tags["script"]
    assert "<script" not in text
    assert EVIL in page.texts
    assert any(EVIL in value for name, value in page.attributes if name == "aria-label")


def test_failed_write_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(self: Path, data: str, **_: object) -> int:
        with self.open("w") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(Results(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_report(Results(), tmp_path / "missing" / "report.html")
