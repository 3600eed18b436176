"""Policies of the user's own: how they are found, and what is said of those that are not."""

from pathlib import Path

import pytest
import torch

from fastgen_vllm.config import FastGenConfig, load_config, parse_config
from fastgen_vllm.policy import Full, Ladder
from fastgen_vllm.policy.checked import Checked, PolicyError
from tests.policy import own
from tests.policy.asked import selector_of
from tests.profiles import make_profile


def path_of(name: str) -> str:
    return f"{own.MODULE}:{name}"


def test_a_policy_becomes_a_ladder_that_ends_with_full() -> None:
    path = path_of("Every")
    ladder = Ladder((own.Every(), Full()))
    assert selector_of(FastGenConfig(policy=path)) == Checked(path, ladder)


def test_heads_in_which_a_policy_recovers_too_little_keep_everything() -> None:
    attention = torch.tensor([[[9.0, 0, 0, 9, 0, 0, 1], [1.0] * 7]])
    selector = selector_of(FastGenConfig(policy=path_of("Every")))
    choice = selector.choose(make_profile(attention), recovery=0.9)
    assert choice.keep[0, 0].nonzero()[:, 0].tolist() == [0, 3, 6]
    assert choice.keep[0, 1].all()
    assert choice.counts() == {"every": 1, "full": 1}


def test_a_selector_chooses_itself() -> None:
    config = FastGenConfig(policy=path_of("Alternating"))
    selector = selector_of(config)
    assert isinstance(selector, Checked) and isinstance(selector.selector, own.Alternating)
    choice = selector.choose(make_profile(torch.ones(2, 4, 7)), recovery=1.0)
    assert choice.counts() == {"every": 4, "full": 4}


def test_what_is_both_chooses_itself() -> None:
    path = "fastgen_vllm.policy:Full"
    assert selector_of(FastGenConfig(policy=path)) == Checked(path, Full())


def test_it_is_made_once() -> None:
    config = FastGenConfig(policy=path_of("Alternating"))
    assert selector_of(config) is selector_of(config)


@pytest.mark.parametrize("name", ["paper", "coverage", "full"])
def test_a_request_may_ask_for_a_built_in_one(name: str) -> None:
    built_in = selector_of(FastGenConfig(policy=name))
    own_one = FastGenConfig(policy=path_of("Every"))
    assert selector_of(own_one, fastgen_policy=name) == built_in


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module_here:Any", "module no_such_module_here cannot be imported (ModuleNotFou"),
        ("no_such_module_here:Any", "put its folder on PYTHONPATH"),
        (".relative:Any", "module .relative cannot be imported"),
        (path_of("Nothing"), f"module {own.MODULE} has no Nothing"),
        (path_of("Stranger"), "no subclass of Policy or Selector: derive it"),
        (path_of("an_instance"), "no subclass of Policy or Selector: derive it"),
        (path_of("Nameless"), "lacks keep, name: define"),
        (path_of("Demanding"), "cannot be constructed without arguments (TypeError: "),
        (path_of("Raising"), "cannot be constructed without arguments (OSError: no file)"),
    ],
)
def test_mistakes_are_named_with_a_remedy(path: str, said: str) -> None:
    with pytest.raises(ValueError, match="Options: ") as error:
        parse_config({"policy": path})
    message = str(error.value)
    assert message.startswith(f"fastgen option policy={path!r}: ") and "\n" not in message
    assert said in message
    assert "or use 'paper', 'coverage', 'full', 'ahakv' or package.module:Class" in message


@pytest.mark.parametrize("text", ["raise RuntimeError('two\\nlines')", "def (:", "import no_such"])
def test_a_module_that_breaks_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_policy.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"module broken_policy cannot be imported \(\w+: .+\)"):
        parse_config({"policy": "broken_policy:Any"})


def test_a_file_names_one_of_a_module_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text(
        f"from {own.MODULE} import Every\n\n\nclass Mine(Every):\n    pass\n"
    )
    (tmp_path / "mine.yaml").write_text("policy: beside:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = load_config(str(tmp_path / "mine.yaml"))
    assert (config.name, config.policy) == ("mine", "beside:Mine")
    assert isinstance(selector_of(config), Checked)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Choosy", "(AssertionError: an odd prompt)"),
        ("OneTooFew", "(RuntimeError: The expanded size of the tensor (7) must match"),
        ("Floats", "keep is not a torch.bool tensor of shape [2, 4, 7], but torch.float32 of"),
        ("Greedy", "growth of every is 2.0, not from 0 to 1"),
        ("Appending", "every appends generated tokens, but its growth is 0.0, not 1"),
        ("Windowed", "window of every is 3.5, not a number of tokens"),
        ("Boundless", "index is 1 to 1, of 1 policies"),
        ("Short", "choose() returns a Tensor, not a Choice"),
    ],
)
def test_what_fails_on_a_prompt_is_told_of(name: str, said: str) -> None:
    selector = selector_of(FastGenConfig(policy=path_of(name)))
    with pytest.raises(PolicyError) as error:
        selector.choose(make_profile(torch.ones(2, 4, 7)), recovery=0.1)
    message = str(error.value)
    assert message.startswith(f"policy='{path_of(name)}': it fails on a prompt of 7 tokens (")
    assert said in message and "\n" not in message
