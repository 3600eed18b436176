"""How a documented signature becomes a call of the compiled op of its name."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

import torch

P = ParamSpec("P")


def compiled(signature: Callable[P, None]) -> Callable[P, None]:
    """Call ``torch.ops.fastgen.<name>``, whose schema has the function's parameters, in order."""
    op = getattr(torch.ops.fastgen, signature.__name__).default
    schema = [argument.name for argument in op._schema.arguments]
    assert list(inspect.signature(signature).parameters) == schema, f"{op} takes {schema}"

    @functools.wraps(signature)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        op(*args, **kwargs)

    return call
