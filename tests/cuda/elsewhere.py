"""A pretended device: tensors that say they are on a GPU, with their numbers on the CPU.

Code that runs on it shows where it would mix tensors of two devices, which a GPU refuses, and where
the host would wait for the device to read a number.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("cuda", 0)
_aten = torch.ops.aten
#: The host waits for these: it needs a number, or the size of the result.
_READS = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten.bincount.default,
}
_COPIES = {_aten._to_copy.default, _aten.copy_.default}


class Elsewhere(Tensor):
    """A tensor on the pretended device."""

    local: Tensor

    @staticmethod
    def __new__(cls, local: Tensor) -> "Elsewhere":
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            local.size(),
            strides=local.stride(),
            storage_offset=local.storage_offset(),
            dtype=local.dtype,
            device="meta",  # what torch's C++ sees: of a GPU it would want the driver
        )
        made.local = local
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the tensor says it is."""
        return DEVICE

    def tolist(self) -> Any:
        """Copies first, as torch does for a GPU."""
        return self.to("cpu").tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.local!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of pretended_gpu()")


class PretendedGPU(TorchDispatchMode):
    """Carries out what is asked of the pretended device, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        # Under a mode of this kind torch does not look for the driver of a device that is named.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = False
        mixed: list[Tensor] = []

        def local(tensor: Tensor) -> Tensor:
            nonlocal there
            if isinstance(tensor, Elsewhere):
                there = True
                return tensor.local
            if tensor.dim() > 0:
                mixed.append(tensor)
            return tensor

        args_here, kwargs_here = tree_map_only(Tensor, local, (args, kwargs))
        to = kwargs_here.get("device")
        leaves = there and to is not None and torch.device(to).type == "cpu"
        if there and func not in _COPIES:
            assert not mixed, f"{func} mixes a tensor on the CPU with one on the GPU"
        if there and (func in _READS or leaves or self._masks(func, args)):
            self.reads += 1
        if func is _aten.copy_.default and there and not isinstance(args[0], Elsewhere):
            self.reads += 1
            there = False
        if to is not None:
            there = torch.device(to).type == DEVICE.type
            kwargs_here["device"] = torch.device("cpu")
        result = func(*args_here, **kwargs_here)
        if not there:
            return result
        if func._schema.is_mutable and func._schema.name.endswith("_"):
            return args[0]
        return tree_map_only(Tensor, Elsewhere, result)

    @staticmethod
    def _masks(func: Any, args: Any) -> bool:
        """Whether a mask is an index, whose number of hits the host must know."""
        if func not in (_aten.index.Tensor, _aten.index_put_.default):
            return False
        return any(index is not None and index.dtype == torch.bool for index in args[1])


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """In here :data:`DEVICE` is the pretended device."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor() copies to a device by an op
    try:
        with PretendedGPU() as gpu:
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def here(op: Callable[..., None]) -> Callable[..., None]:
    """An op for the pretended device, of one for the CPU; all its tensors must be there."""

    def run(*arguments: Any) -> None:
        for argument in arguments:
            assert not isinstance(argument, Tensor) or isinstance(argument, Elsewhere), (
                "an op on the GPU gets a tensor on the CPU"
            )
        with torch.utils._python_dispatch._disable_current_modes():
            op(*(a.local if isinstance(a, Elsewhere) else a for a in arguments))

    return run
