"""The configuration: presets, YAML, and what it refuses."""

from pathlib import Path

import pytest

from fastgen_vllm.config import FastGenConfig, load_config, parse_config, preset_names

#: A policy by its import path, as users name their own.
OWN = "fastgen_vllm.policy:Special"


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": "paper", "paper": {"without": ["local", "special"]}},
        {"policy": OWN},
        {"keep": 0.25, "coverage": {"recent": 0.1, "generated": "keep"}},
        {"keep_tokens": 300},
        {"head_weights": [[1, 0.1], [1e-5, 1 / 3]]},
    ],
)
def test_config_survives_json(options: dict[str, object]) -> None:
    config = parse_config(options)
    assert parse_config(config.model_dump(mode="json")) == config


def test_keep_goes_with_coverage() -> None:
    assert parse_config({"policy": "coverage", "keep": 0.25}).keep == 0.25


def test_keep_tokens_goes_with_coverage() -> None:
    assert parse_config({"keep_tokens": 300}).keep_tokens == 300


@pytest.mark.parametrize("budget", [{"keep": 0.25}, {"keep_tokens": 300}])
def test_ahakv_goes_with_a_budget(budget: dict[str, float]) -> None:
    config = parse_config({"policy": "ahakv", **budget})
    assert {"keep": config.keep, "keep_tokens": config.keep_tokens}.items() >= budget.items()


def test_keep_goes_with_the_default_policy() -> None:
    assert parse_config({"keep": 1}).keep == 1.0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("heads.yaml", "- [1, 2.5]\n- [0.5, 1]\n"),
        ("heads.json", "[\n\t[1, 2.5],\n\t[5e-1, 1]\n]\n"),
        ("heads", "[[1, 2.5], [5e-1, 1]]"),
    ],
)
def test_head_weights_come_from_a_file(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to the current directory; elsewhere the configuration has the numbers."""
    tmp_path.joinpath(name).write_text(text)
    monkeypatch.chdir(tmp_path)
    config = parse_config({"head_weights": name})
    assert config.head_weights == ((1.0, 2.5), (0.5, 1.0))
    monkeypatch.chdir("/")
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[1", "neither YAML nor JSON"),
        ("", "head_weights=None: Input should be a valid tuple"),
        ("1", "head_weights=1: Input should be a valid tuple"),
        ("- 1", "head_weights.0=1: Input should be a valid tuple"),
        ("[]", "not rows of []"),
        ("[[], []]", "not rows of [0]"),
        ("[[1], [1, 2]]", "not rows of [1, 2]"),
        ("[[1, 0]]", "head_weights.0.1=0: Input should be greater than 0"),
        ("[[1], [-1]]", "head_weights.1.0=-1: Input should be greater than 0"),
        ("[[.nan]]", "head_weights.0.0=nan: Input should be a finite number"),
        ("[[.inf]]", "head_weights.0.0=inf: Input should be a finite number"),
        ("[[much]]", "head_weights.0.0='much': Input should be a valid number"),
    ],
)
def test_bad_head_weights_are_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="head_weights") as error:
        parse_config({"head_weights": str(path)})
    assert named in str(error.value)


def test_recovery_decides_unless_a_share_is_given() -> None:
    assert FastGenConfig().keep is None


def test_prompts_are_replayed_and_a_tenth_of_what_is_kept_is_recent_by_default() -> None:
    config = FastGenConfig()
    assert (config.observe, config.coverage.recent) == ("replay", 0.1)


def test_rungs_can_be_left_out() -> None:
    config = parse_config({"policy": "paper", "paper": {"without": ["frequent", "local"]}})
    assert config.paper.without == ("frequent", "local")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"recover": 0.9}, "recover=0.9"),
        ({"recovery": 0}, "recovery=0"),
        ({"recovery": 1.5}, "recovery=1.5"),
        ({"policy": "magic"}, "'paper', 'coverage', 'full', 'ahakv' or package.module:Class"),
        ({"policy": "package.module.Class"}, "policy='package.module.Class': Value error, use '"),
        ({"policy": "package.module:"}, "use 'paper'"),
        ({"policy": 3}, "policy=3: Value error, use 'paper'"),
        ({"policy": "no_such_module:Any"}, "policy='no_such_module:Any': Value error, module no"),
        ({"policy": OWN, "keep": 0.3}, f"coverage or ahakv, not {OWN}; others go by recovery"),
        ({"observe": "first 3"}, "observe"),
        ({"observe": 0}, "observe"),
        ({"paper": {"local": 2}}, "paper.local=2"),
        ({"coverage": {"sinks": -1}}, "coverage.sinks=-1"),
        ({"coverage": {"recent": 1.1}}, "coverage.recent=1.1"),
        ({"coverage": {"least": 1.1}}, "coverage.least=1.1"),
        ({"coverage": {"generated": "drop"}}, "coverage.generated='drop'"),
        ({"coverage": {"generated": "drop"}}, "'keep' or 'replace'"),
        ({"keep": 0}, "keep=0"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"policy": "paper", "keep": 0.3}, "keep=0.3: Value error, needs policy coverage"),
        ({"policy": "full", "keep": 0.3}, "needs policy coverage or ahakv, not full"),
        ({"policy": "ahakv"}, "keep_tokens=None: Value error, policy ahakv knows no recovery"),
        ({"policy": "ahakv", "keep": 7}, "keep=7"),
        ({"policy": "ahakv", "keep": 1, "head_weights": [[1]]}, "ahakv does not go by importance"),
        ({"keep_tokens": 0}, "keep_tokens=0"),
        ({"keep_tokens": 0.5}, "keep_tokens=0.5"),
        ({"policy": "full", "keep_tokens": 300}, "keep_tokens=300: Value error, needs policy cov"),
        ({"keep": 0.3, "keep_tokens": 300}, "keep_tokens=300: Value error, keep=0.3 says as much"),
        ({"head_weights": "no.yaml"}, "head_weights='no.yaml': Value error, no such file"),
        ({"policy": "paper", "head_weights": [[1]]}, "paper does not go by importance"),
        ({"paper": {"without": ["full"]}}, "paper.without.0='full'"),
        ({"paper": {"without": "local"}}, "paper.without='local'"),
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
