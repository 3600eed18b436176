"""The configuration: presets, YAML, and what it refuses."""

from pathlib import Path

import pytest

from fastgen_vllm.config import FastGenConfig, load_config, parse_config, preset_names


def test_presets_load_under_their_own_name() -> None:
    assert {"balanced", "full", "paper"} <= set(preset_names())
    for name in preset_names():
        assert load_config(name).name == name


def test_every_preset_says_what_it_is_for() -> None:
    for path in Path(__file__).parents[1].joinpath("configs").glob("*.yaml"):
        assert path.read_text().startswith(f"# {path.stem}: ")


def test_full_is_a_forced_control() -> None:
    config = load_config("full")
    assert config.policy == "full"
    assert config.force


def test_paper_has_the_papers_numbers() -> None:
    config = load_config("paper")
    assert (config.policy, config.recovery) == ("paper", 0.95)
    assert (config.paper.local, config.paper.frequent) == (0.3, 0.3)


def test_balanced_is_coverage() -> None:
    assert load_config("balanced").policy == "coverage"


def test_file_is_named_after_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("policy: paper\npaper: {local: 0.1}\n")
    config = load_config(str(path))
    assert (config.name, config.paper.local, config.paper.frequent) == ("mine", 0.1, 0.3)


@pytest.mark.parametrize(
    ("value", "observe"), [(256, 256), ("last 64", 64), ("64", 64), ("all", "all"), ("All", "all")]
)
def test_observe_spellings(value: object, observe: object) -> None:
    assert parse_config({"observe": value}).observe == observe


def test_config_survives_json() -> None:
    config = load_config("paper")
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"recover": 0.9}, "recover=0.9"),
        ({"recovery": 0}, "recovery=0"),
        ({"recovery": 1.5}, "recovery=1.5"),
        ({"policy": "magic"}, "'paper', 'coverage' or 'full'"),
        ({"observe": "first 3"}, "observe"),
        ({"observe": 0}, "observe"),
        ({"paper": {"local": 2}}, "paper.local=2"),
        ({"coverage": {"sinks": -1}}, "coverage.sinks=-1"),
        ({"force": "perhaps"}, "force='perhaps'"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match="Options: ") as error:
        parse_config(options)
    assert named in str(error.value)


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ValueError, match=r"--fastgen nope.*balanced, .*off"):
        load_config("nope")


@pytest.mark.parametrize("text", ["policy: [", "- policy", "just words", ""])
def test_malformed_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        load_config(str(path))


def test_config_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        FastGenConfig().recovery = 0.5  # type: ignore[misc]
