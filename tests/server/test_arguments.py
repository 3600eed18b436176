"""Merging of our engine options with the user's, without vLLM."""

from typing import Any

import pytest

from fastgen_vllm.config import load_config
from fastgen_vllm.server.arguments import added_source, merge_options, resolve_config

OURS: dict[str, Any] = {
    "worker_cls": "ours.Worker",
    "scheduler_cls": "ours.Scheduler",
    "logits_processors": ["ours.Validator"],
    "block_size": 32,
    "additional_config": {"fastgen": {"policy": "full"}},
}


@pytest.mark.parametrize("given", [{}, {"worker_cls": "auto", "block_size": None}])
def test_everything_not_given_is_ours(given: dict[str, Any]) -> None:
    assert merge_options(given, OURS) == OURS


def test_what_the_user_gave_stays() -> None:
    given = {
        "max_model_len": 2048,
        "block_size": 64,
        "logits_processors": ["theirs.Processor"],
        "additional_config": {"other": 1, "fastgen": {"policy": "paper"}},
    }
    assert merge_options(given, OURS) == {
        "max_model_len": 2048,
        "worker_cls": "ours.Worker",
        "scheduler_cls": "ours.Scheduler",
        "logits_processors": ["ours.Validator", "theirs.Processor"],
        "block_size": 64,
        "additional_config": {"other": 1, "fastgen": {"policy": "full"}},
    }


def test_inputs_are_left_alone() -> None:
    given: dict[str, Any] = {"additional_config": {"other": 1}, "logits_processors": ["a"]}
    merge_options(given, OURS)
    assert given == {"additional_config": {"other": 1}, "logits_processors": ["a"]}
    assert OURS["additional_config"] == {"fastgen": {"policy": "full"}}
    assert OURS["logits_processors"] == ["ours.Validator"]


@pytest.mark.parametrize("option", ["worker_cls", "scheduler_cls"])
def test_foreign_classes_are_refused(option: str) -> None:
    flag = f"--{option.replace('_', '-')}='theirs.Class'"
    with pytest.raises(ValueError, match=f"{flag}.*--fastgen off"):
        merge_options({option: "theirs.Class"}, OURS)


def test_additional_config_must_be_a_mapping() -> None:
    with pytest.raises(ValueError, match="--additional-config"):
        merge_options({"additional_config": "text"}, OURS)
    with pytest.raises(ValueError, match="--additional-config"):
        resolve_config("balanced", "text")


def test_source_alone() -> None:
    assert resolve_config("paper") == load_config("paper")
    assert resolve_config("paper", {"other": 1}) == load_config("paper")


def test_off_is_none() -> None:
    assert resolve_config("off") is None
    assert resolve_config("off", {"other": 1}) is None


def test_single_options_change_the_preset() -> None:
    changes = {"fastgen": {"recovery": 0.8, "paper": {"local": 0.1}}}
    config = resolve_config("paper", changes)
    assert config is not None
    assert config.name == "paper (changed)"
    assert config.policy == "paper"
    assert config.recovery == 0.8
    assert (config.paper.local, config.paper.frequent) == (0.1, 0.3)


@pytest.mark.parametrize("changes", [{"recover": 0.8}, {"recovery": 7}, "paper", 3])
def test_bad_changes_are_refused(changes: object) -> None:
    with pytest.raises(ValueError, match="Options: "):
        resolve_config("balanced", {"fastgen": changes})


def test_off_contradicts_changes() -> None:
    with pytest.raises(ValueError, match="--fastgen off"):
        resolve_config("off", {"fastgen": {"recovery": 0.8}})


@pytest.mark.parametrize(
    ("sources", "preset", "changed"),
    [
        (["on"], "balanced", {}),
        (['{"recovery": 0.9}'], "balanced", {"recovery": 0.9}),
        (["{recovery: 0.9}"], "balanced", {"recovery": 0.9}),
        (['{"preset": "paper", "recovery": 0.9}'], "paper", {"recovery": 0.9}),
        (['{"preset": true}'], "balanced", {}),
        (["paper", '{"recovery": 0.9}'], "paper", {"recovery": 0.9}),
        (['{"recovery": 0.9}', "paper"], "paper", {}),
        (
            ['{"recovery": 0.9}', '{"min_prompt": 7}'],
            "balanced",
            {"recovery": 0.9, "min_prompt": 7},
        ),
        (['{"preset": "paper"}', '{"recovery": 0.9}'], "paper", {"recovery": 0.9}),
        (['{"recovery": 0.9}', '{"preset": "paper"}'], "paper", {}),
    ],
)
def test_a_preset_and_single_options(
    sources: list[str], preset: str, changed: dict[str, Any]
) -> None:
    source = "balanced"
    for given in sources:
        source = added_source(source, given)
    found = resolve_config(source)
    assert found is not None
    base = load_config(preset).model_dump()
    name = f"{preset} (changed)" if changed else preset
    assert found.model_dump() == base | changed | {"name": name}


def test_nested_options_are_changed_one_by_one() -> None:
    source = added_source('{"coverage": {"sinks": 8}}', '{"coverage": {"least": 0.1}}')
    found = resolve_config(source, {"fastgen": {"coverage": {"recent": 0.2}}})
    assert found is not None
    assert (found.coverage.sinks, found.coverage.least, found.coverage.recent) == (8, 0.1, 0.2)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('{"recover": 0.9}', "recover=0.9.*Options: name, policy"),
        ("{recovery: 0.9", "--fastgen {recovery: 0.9: it is not a mapping"),
        ('{"preset": "nope"}', "--fastgen nope: no such preset or file"),
        ('{"preset": "off", "recovery": 0.9}', "contradicts --fastgen off"),
    ],
)
def test_mistakes_in_a_mapping_are_named(source: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        resolve_config(source)
