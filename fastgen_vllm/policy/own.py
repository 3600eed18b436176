"""Policies of the user's own, by import path."""

import inspect
from functools import cache
from importlib import import_module

from fastgen_vllm.errors import one_line
from fastgen_vllm.policy.base import Policy, Selector
from fastgen_vllm.policy.checked import Checked
from fastgen_vllm.policy.full import Full
from fastgen_vllm.policy.ladder import Ladder


@cache
def own_selector(path: str) -> Checked:
    """Return what ``package.module:Class`` stands for; it is made once in a process.

    A selector chooses itself. A policy is the one rung of a ladder below :class:`Full`: heads
    in which it recovers enough attention get it, the others keep everything.

    Raises:
        ValueError: the class cannot be found or made; says why, and what to do.
    """
    found = _find(path)
    if not (isinstance(found, type) and issubclass(found, Policy | Selector)):
        raise ValueError(
            f"{path} is no subclass of Policy or Selector: derive it from one of the two in "
            "fastgen_vllm.policy"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ValueError(f"{path} lacks {missing}: define what its base class declares")
    try:
        made = found()
    except Exception as error:
        raise ValueError(
            f"{path} cannot be constructed without arguments ({one_line(error)}): give each of "
            "them a default"
        ) from error
    return Checked(path, made if isinstance(made, Selector) else Ladder((made, Full())))


def _find(path: str) -> object:
    name, _, attribute = path.partition(":")
    try:
        module = import_module(name)
    except Exception as error:  # whatever a module does when it is run
        raise ValueError(
            f"module {name} cannot be imported ({one_line(error)}): install it, or put its folder "
            "on PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(f"module {name} has no {attribute}: name a class that it defines")
    return getattr(module, attribute)
