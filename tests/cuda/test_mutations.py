"""Faults put into the CUDA kernels, each of which a check must catch. Listed in docs/cuda.md."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from fastgen_vllm.ops.layout import Layout
from tests.cuda import checks, toolkit
from tests.cuda.build import EmulatorError, Mode, Order
from tests.cuda.emulated import EmulatedOps
from tests.cuda.interpreted import InterpretedOps
from tests.cuda.ptx import Fault

Check: TypeAlias = Callable[[EmulatedOps], None]

decode: Check = partial(checks.check_decode_attention, dtype=torch.bfloat16, D=64, G=3)
mass: Check = partial(checks.check_attention_mass, dtype=torch.bfloat16, D=64, G=2, N=70, W=37)
PTX = "ptx"


@dataclass(frozen=True)
class Mutation:
    """A line of csrc/cuda with a fault, and what sees it."""

    what: str
    file: str
    right: str
    wrong: str
    check: Check
    mode: Mode | str = Mode.PLAIN

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


MUTATIONS = [
    Mutation(
        "no barrier before shared memory changes its meaning",
        "decode_pieces.h",
        "  // Shared memory changes its meaning.\n  __syncthreads();\n",
        "",
        decode,
        Mode.THREAD,
    ),
    Mutation(
        "no barrier after a piece",
        "decode_pieces.h",
        "    }\n  }\n  __syncthreads();\n}",
        "    }\n  }\n}",
        decode,
        Mode.THREAD,
    ),
    Mutation(
        "the last partial page is dropped",
        "decode_jobs.h",
        "(head.length + a.pool.page_slots - 1) / a.pool.page_slots;",
        "head.length / a.pool.page_slots;",
        decode,
    ),
    Mutation(
        "the scale is forgotten",
        "decode_pieces.h",
        "const float scale = jobs.a.scale * kLog2E;",
        "const float scale = kLog2E;",
        decode,
    ),
    Mutation(
        "a wait for too few copies",
        "decode_pieces.h",
        "wait_for_copies<kStages - 2>();",
        "wait_for_copies<kStages - 1>();",
        decode,
    ),
    Mutation(
        "keys in the place of values",
        "decode_pieces.h",
        "from + pool.head_size);",
        "from);",
        decode,
    ),
    Mutation(
        "heads for slots in a stride",
        "decode_pieces.h",
        "page * pool.page_slots) * pool.slot_stride;",
        "page * pool.page_slots) * pool.head_stride;",
        decode,
    ),
    Mutation(
        "only the first block's part of a head",
        "decode_finish.h",
        "const int num_states = last_block - first_block + 1;",
        "const int num_states = 1;",
        decode,
    ),
    Mutation(
        "no barrier before the record changes",
        "store.h",
        "  __syncthreads();  // all have read the record and the metadata that change now\n",
        "",
        checks.check_store,
        Mode.THREAD,
    ),
    Mutation(
        "the window is not spared",
        "store.h",
        "if (free && position <= token_position - head.window) {",
        "if (free) {",
        checks.check_store,
    ),
    Mutation(
        "a vector too many of a slot",
        "compact.h",
        "a.pool.element_size / kVectorBytes;",
        "a.pool.element_size / kVectorBytes + 1;",
        checks.check_compact,
    ),
    Mutation(
        "the last partial page is dropped",
        "compact.h",
        "page * slots < count;",
        "(page + 1) * slots <= count;",
        checks.check_compact,
    ),
    Mutation(
        "slots of a saved page as far apart as the pool's",
        "compact.h",
        "place(a.saved, saved, a.saved.slot_stride)",
        "place(a.saved, saved, a.pool.slot_stride)",
        checks.check_compact,
    ),
    Mutation(
        "rows of keys that are not aligned to vectors",
        "attention_mass.h",
        "kHeadSize + Vector<T>::kSize;",
        "kHeadSize + 2;",
        mass,
        Mode.ADDRESS,
    ),
    Mutation(
        "no barrier after the keys arrived",
        "attention_mass.h",
        "  wait_for_copies<0>();\n  __syncthreads();\n",
        "  wait_for_copies<0>();\n",
        mass,
        Mode.THREAD,
    ),
    Mutation(
        "one set of sums for two that take turns",
        "attention_mass.h",
        "query += kQueryTile, set ^= 1)",
        "query += kQueryTile)",
        mass,
        Mode.THREAD,
    ),
    Mutation(
        "a query sees the token after it",
        "attention_mass.h",
        "if (first + column + fragment_column(e) > position) continue;",
        "if (first + column + fragment_column(e) > position + 1) continue;",
        mass,
    ),
    Mutation(
        "halves of a fragment in the wrong order",
        "attention_mass.h",
        "(key + step * 16),",
        "(key + step * 16 + 8),",
        mass,
    ),
    Mutation(
        "mma operands in the wrong order",
        "device.h",
        '"r"(b[0]), "r"(b[1])',
        '"r"(b[1]), "r"(b[0])',
        mass,
        PTX,
    ),
    Mutation(
        "a wait in assembly for too few copies",
        "device.h",
        '"n"(kLater)',
        '"n"(kLater + 1)',
        decode,
        PTX,
    ),
]


def make(mutation: Mutation, csrc: Path) -> None:
    """Copy the kernels, with the fault in them."""
    shutil.copytree(toolkit.CSRC, csrc)
    file = csrc / "cuda" / mutation.file
    text = file.read_text()
    assert text.count(mutation.right) == 1, f"{mutation}: not once in the file"
    file.write_text(text.replace(mutation.right, mutation.wrong))


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    csrc = tmp_path / "csrc"
    make(mutation, csrc)
    if mutation.mode == PTX:
        ops: EmulatedOps = InterpretedOps(tmp_path, csrc=csrc)
    else:
        mode = Mode(mutation.mode)
        ops = EmulatedOps(tmp_path, mode, Order.RANDOM, Layout.SLOTS_FIRST, seed=1, csrc=csrc)
    with pytest.raises((EmulatorError, AssertionError, Fault)):
        mutation.check(ops)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_lines_are_there(mutation: Mutation, tmp_path: Path) -> None:
    make(mutation, tmp_path / "csrc")
