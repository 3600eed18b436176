"""The documentation site: it builds strictly, fetches nothing, and says what the code says."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml

from fastgen_vllm.geometry import CacheGeometry
from fastgen_vllm.integration.options import _REFUSALS
from fastgen_vllm.pages import StreamPlan, StreamSize
from fastgen_vllm.policy import Choice, Important
from fastgen_vllm.runtime import FastGenRuntime
from fastgen_vllm.runtime.messages import Uncompacted
from tests.metrics import base_of, defined_metrics, metrics_in

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Tags that load what they name, and the attribute that names it.
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` does. With --quiet mkdocs would not count warnings."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("[other](other.md#here)", None),
        ("[missing](missing.md)", "'missing.md'"),
        ("[elsewhere](other.md#missing)", "#missing"),
        ("[above](#missing)", "#missing"),
        ("![picture](missing.svg)", "'missing.svg'"),
        ("[source](../missing.py)", "missing.py"),
    ],
)
def test_a_broken_link_fails(tmp_path: Path, link: str, message: str | None) -> None:
    config = tmp_path / "mkdocs.yml"
    pages = {"nav": ["index.md", "other.md"], "hooks": [], "extra_css": [], "plugins": []}
    config.write_text(yaml.safe_dump({"INHERIT": str(ROOT / "mkdocs.yml"), **pages}))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Start\n\n{link}\n")
    (tmp_path / "docs/other.md").write_text("# Other\n\n## Here\n")
    built = build(config, tmp_path / "site")
    assert (built.returncode == 0) == (message is None), built.stderr
    assert message is None or message in built.stderr


class Resources(HTMLParser):
    """What a page loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == LOADING.get(tag) and value]


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # all, and 404.html
    for page in pages:
        loaded = Resources(page).found
        assert any(name.endswith(".css") for name in loaded), page
        assert not [name for name in loaded if re.match(r"(https?:)?//", name)], page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)]*", text), sheet


def test_code_is_in_the_reference(site: Path) -> None:
    options = (site / "reference/options.html").read_text("utf-8")
    assert "coverage.generated" in options and "attention mass" in options
    python = (site / "reference/python.html").read_text("utf-8")
    assert 'id="fastgen_vllm.llm_options"' in python
    command_line = (site / "reference/cli.html").read_text("utf-8")
    assert "--retrieval-lengths" in command_line and "coverage.generated" in command_line
    policies = (site / "reference/policies.html").read_text("utf-8")
    assert "that of the oldest token" in policies  # a comment behind a field
    for page in site.rglob("*.html"):
        assert not re.search(r"<!-- (?:help|fields): |:(?:class|mod):", page.read_text("utf-8")), (
            page
        )


def tables_of(text: str) -> list[list[str]]:
    """Cells of all rows of all tables."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def section(page: str, heading: str) -> str:
    """Text below a heading, up to the next of the same or a higher level."""
    level, _, _ = heading.partition(" ")
    _, _, text = (DOCS / page).read_text("utf-8").partition(f"\n{heading}\n")
    assert text, heading
    return re.split(rf"^#{{1,{len(level)}}} ", text, flags=re.MULTILINE)[0]


def test_alerts_ask_for_metrics_that_exist() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", section("operating.md", "## Alert rules"), re.DOTALL)
    (group,) = yaml.safe_load(text)["groups"]
    used: set[str] = set()
    for rule in group["rules"]:
        assert rule["alert"] and rule["annotations"]["summary"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
        used |= metrics_in(rule["expr"])
        for reason in re.findall(r'reason="(\w+)"', rule["expr"]):
            assert reason in set(Uncompacted)
    assert len(used) > 6
    assert {base_of(metric) for metric in used} <= defined_metrics()


def test_every_metric_and_every_reason_is_explained() -> None:
    rows = tables_of(section("operating.md", "## Metrics"))
    named = {base_of(re.sub(r"\{.*", "", row[0].strip("`"))) for row in rows[2:]}
    assert named == {metric for metric in defined_metrics() if metric.startswith("fastgen_")}
    rows = tables_of(section("troubleshooting.md", "## A request was not compacted"))
    assert {row[0].strip("`") for row in rows[2:]} == set(Uncompacted)


def test_every_refusal_is_explained() -> None:
    text = section("troubleshooting.md", "## Refused at start")
    for refusal in _REFUSALS:
        begin = re.split(r"[:,]", refusal.message)[0]
        assert f"`{begin}" in text, begin


def test_measured_presets_are_those_of_the_readme() -> None:
    (table,) = [part for part in section("presets.md", "## Measured").split("\n\n") if "|" in part]
    assert table.strip() in (ROOT / "README.md").read_text("utf-8")


def test_worked_example_is_what_the_code_computes() -> None:
    layers, heads, head_size, block_size, prompt, answer = 30, 3, 64, 32, 1024, 256
    per_block = layers * heads
    slots = per_block * block_size
    kept = 0.37 * prompt
    request = StreamSize(
        fixed_pages=math.ceil(per_block * (kept / block_size + 0.5)),
        num_appending=0,
        num_slow=per_block,
        slow_period=2,
        room=prompt,
        pages_per_block=per_block,
        block_size=block_size,
    )
    pool = 2**27
    stock = pool // (slots * 4 * head_size)
    records = FastGenRuntime.record_bytes(per_block, 256)
    ours = (pool - records) // (slots * (4 * head_size + FastGenRuntime.SLOT_BYTES))
    end = prompt + answer
    before = prompt // block_size
    computed = {
        "blocks of the pool": (stock, ours),
        "blocks of a prompt, before compaction": (before, before),
        "blocks after compaction": (before, request.blocks(prompt)),
        "blocks at the end": (end // block_size, request.blocks(end)),
        "requests that fit, all at their end": (
            (stock - 1) // (end // block_size),
            (ours - 1) // request.blocks(end),
        ),
    }
    rows = tables_of(section("operating.md", "### Worked example"))
    assert {row[0]: (int(row[1]), int(row[2])) for row in rows[2:]} == computed

    # The page tells to add half a page a head for rounding. A plan of heads that keep different
    # numbers of tokens rounds each by itself.
    share = torch.rand(layers, heads, 1, generator=torch.Generator().manual_seed(0))
    count = (share / share.mean() * kept).clamp(1, prompt - 1)
    policy = Important(total=0, recent=1, sinks=0, generated=0.5)
    choice = Choice(
        (policy,), torch.zeros(layers, heads, dtype=torch.int64), torch.arange(prompt) < count
    )
    geometry = CacheGeometry(layers, heads, 3, head_size, block_size, ours)
    planned = StreamPlan.make(choice, 1, geometry).size
    assert planned.fixed_pages == pytest.approx(request.fixed_pages, rel=0.03)
    assert planned._replace(fixed_pages=request.fixed_pages) == request
