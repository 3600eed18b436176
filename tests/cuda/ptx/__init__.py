"""Runs the PTX that nvcc emits, inline assembly included, on numpy, a warp at a time.

What the emulator of the kernels' source cannot see is seen here: operands of `mma` in the wrong
order, a wait for too few copies, a condition that the compiler turned round. Memory is strict:
every access is checked for bounds and alignment, shared memory is no larger than asked for and
full of NaN, a copy's data arrives no sooner than at the wait that covers it, and lanes that
should meet but cannot are an error. Approximate functions are computed exactly; time is not
modelled, nor are weak memory order, TMA, wgmma and clusters.
"""

from tests.cuda.ptx.machine import launch
from tests.cuda.ptx.memory import Fault, Space
from tests.cuda.ptx.parser import Module, Unsupported, parse

__all__ = ["Fault", "Module", "Space", "Unsupported", "launch", "parse"]
