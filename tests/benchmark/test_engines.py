"""Names of engines, and what is behind them."""

from pathlib import Path

import pytest

from fastgen_vllm.benchmark.engines import Engine, baseline, parse_engines


def test_names_say_what_is_measured() -> None:
    stock, bare, ours, paper = parse_engines("stock, bare,fastgen,fastgen:paper", "quarter")
    assert (stock.fastgen, stock.plugin) == (None, True)
    assert (bare.fastgen, bare.environment) == (None, {"VLLM_PLUGINS": ""})
    assert (ours.name, ours.fastgen, ours.environment) == ("fastgen", "quarter", {})
    assert (paper.name, paper.fastgen) == ("fastgen:paper", "paper")


def test_a_side_may_have_a_model_of_its_own() -> None:
    engines = parse_engines("stock@out/plain,bare@org/name,fastgen@a:b,fastgen:paper@c", "quarter")
    assert [engine.model for engine in engines] == ["out/plain", "org/name", "a:b", "c"]
    assert [engine.fastgen for engine in engines] == [None, None, "quarter", "paper"]
    assert [engine.plugin for engine in engines] == [True, False, True, True]
    assert baseline(engines).name == "stock@out/plain"


def test_a_file_is_an_engine(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("policy: coverage\nkeep: 0.5\n")
    (engine,) = parse_engines(f"fastgen:{path}", "balanced")
    assert engine.fastgen == str(path)


@pytest.mark.parametrize(
    ("text", "fastgen", "problem"),
    [
        ("stock,paper", "balanced", "--engines paper: must be stock, bare, fastgen, fastgen:PRE"),
        ("", "balanced", "--engines '': name at least one of stock, bare"),
        ("stock,stock", "balanced", "--engines stock,stock: every engine once"),
        ("fastgen:nope", "balanced", "--engines fastgen: nope: no such preset or file"),
        ("stock@", "balanced", "--engines stock@: must be stock"),
        ("stock:paper", "balanced", "--engines stock:paper: must be stock"),
        ("fastgen:", "balanced", "--engines fastgen:: must be stock"),
        ("fastgen", "nope", "--fastgen nope: no such preset or file. Use one of balanced"),
        ("fastgen", "off", "--fastgen off: no such preset"),
    ],
)
def test_unknown_names_are_told_in_a_line(text: str, fastgen: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_engines(text, fastgen)
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)


def test_a_preset_that_is_not_measured_is_not_read() -> None:
    assert parse_engines("stock", "nope") == (Engine(name="stock"),)


def test_stock_is_the_baseline_and_else_the_first() -> None:
    assert baseline(parse_engines("fastgen,stock", "balanced")).name == "stock"
    assert baseline(parse_engines("fastgen:paper,fastgen", "balanced")).name == "fastgen:paper"
