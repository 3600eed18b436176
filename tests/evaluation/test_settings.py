import dataclasses

import pytest

from fastgen_vllm.evaluation import contexts, ruler, tasks
from fastgen_vllm.evaluation.settings import RETRIEVAL, TASKS, Settings


def test_names_are_those_of_the_tasks_that_exist() -> None:
    assert (*contexts.TASKS, *ruler.TASKS) == RETRIEVAL
    assert Settings().retrieval_tasks == contexts.TASKS
    assert tasks.TASKS == TASKS


def test_quick_makes_small_only_what_was_left_at_its_default() -> None:
    quick = Settings(lengths=(4096,), seed=7).quick()
    assert quick.lengths == (4096,)
    assert (quick.samples, quick.retrieval_lengths, quick.seed) == (1, (768,), 7)


def test_asked_names_every_setting_in_plain_types() -> None:
    asked = Settings().asked()
    assert asked.keys() == {field.name for field in dataclasses.fields(Settings)}
    assert asked["keep"] == [0.1, 0.25, 0.5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": (1.5,)}, "--keep 1.5: must be above 0 and at most 1"),
        ({"keep": (1.0,), "peers": True}, "--keep 1.0: must be below 1 with --peers"),
        ({"recovery": (0.0,)}, "--recovery 0.0"),
        ({"lengths": (64,)}, "--lengths.* 64: must be at least 256"),
        ({"continuation": 1}, "--continuation 1"),
        ({"samples": 0}, "--samples 0"),
        ({"protocols": ("later",)}, "--protocols later: must be one of continuation, seen, unseen"),
        ({"retrieval": ("needle",)}, "--retrieval needle: must be one of passkey"),
        ({"tasks": ("mmlu",)}, "--tasks mmlu: must be one of gsm8k, humaneval"),
        ({"pool_gib": 0.0}, "--pool-gib 0.0"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**wrong).checked()  # type: ignore[arg-type]
