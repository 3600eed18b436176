"""The gate's parsers and comparisons, on what ptxas and nvdisasm once said."""

from pathlib import Path

import pytest

from tests.cuda import gate, toolkit
from tests.cuda.gate import Compiled, Limit, Usage

MASS, STORE = "_ZN7fastgen4massI6__halfLi64EEEvPKT_", "_ZN7fastgen5storeEv"

PTXAS = f"""\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{MASS}' for 'sm_80'
ptxas info    : Function properties for {MASS}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 1 barriers, 1024 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 10.386 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{MASS}' for 'sm_100'
ptxas info    : Function properties for {MASS}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers
ptxas info    : Compiling entry function '{STORE}' for 'sm_100'
ptxas info    : Function properties for {STORE}
    56 bytes stack frame, 64 bytes spill stores, 76 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 56 bytes cumulative stack size
"""

SASS = f"""
	.target	sm_80
//--------------------- .text.{MASS} --------------------------
	.section	.text.{MASS},"ax",@progbits
        .other          {MASS},@"STO_CUDA_ENTRY STV_DEFAULT"
{MASS}:
.text.{MASS}:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR6][R2.64] ;
        /*00a0*/              @UP1 LDGSTS.E.BYPASS.128 [R9], [R2.64] ;
        /*0220*/                   HMMA.16816.F32.BF16 R8, R4, R2, R8 ;
.L_x_0:
        /*10290*/                  BRA `(.L_x_0);
        /*102b0*/                  NOP;
//--------------------- .text.{STORE} --------------------------
.text.{STORE}:
        /*0000*/                   STL.64 [R1], R2 ;
"""


def kernel(registers: int = 40, shared: int = 0, stack: int = 0, *opcodes: str) -> Compiled:
    usage = Usage(registers, shared, stack, stack)
    return Compiled("fastgen::mass<__half, 64>", "sm_90", usage, frozenset(opcodes))


def test_usage_is_read() -> None:
    assert gate.parse_usage(PTXAS) == {
        (MASS, "sm_80"): Usage(14, 1024, 0, 0),
        (MASS, "sm_100"): Usage(16, 0, 0, 0),
        (STORE, "sm_100"): Usage(32, 0, 56, 64),
    }


def test_opcodes_are_read() -> None:
    wide = {"LDG.E.128.CONSTANT", "LDGSTS.E.BYPASS.128", "HMMA.16816.F32.BF16"}
    assert gate.parse_sass(SASS) == {
        (MASS, "sm_80"): {"MOV", "BRA", "NOP", *wide},
        (STORE, "sm_80"): {"STL.64"},
    }


@pytest.mark.parametrize(
    ("opcode", "wanted", "holds"),
    [
        ("LDG.E.128", "LDG.128", True),
        ("LDG.E.128.CONSTANT", "LDG.E.128", True),
        ("HMMA.16816.F32.BF16", "HMMA.16816", True),
        ("LDG.E.64", "LDG.128", False),
        ("LDGSTS.E.BYPASS.128", "LDG.128", False),
        ("LDG.128.E", "LDG.E.128", False),
    ],
)
def test_wanted_instructions(opcode: str, wanted: str, holds: bool) -> None:
    assert gate.is_a(opcode, wanted) == holds


LIMIT = Limit("fastgen::mass<*>", registers=40, shared=512, instructions=("LDG.128", "HMMA"))


@pytest.mark.parametrize(
    ("compiled", "said"),
    [
        (kernel(40, 512, 0, "LDG.E.128", "HMMA.16816.F32"), None),
        (kernel(41, 0, 0, "LDG.E.128", "HMMA"), "41 registers, limit 40"),
        (kernel(40, 528, 0, "LDG.E.128", "HMMA"), "528 bytes of static shared memory, limit 512"),
        (kernel(40, 0, 8, "LDG.E.128", "HMMA"), "8 bytes of stack, 8 bytes of spills, limit 0"),
        (kernel(40, 0, 0, "LDG.E.128", "HMMA", "LDL.64"), "LDL.64: local memory is used"),
        (kernel(40, 0, 0, "LDG.E.64", "HMMA"), "no LDG.128"),
    ],
)
def test_violations(compiled: Compiled, said: str | None) -> None:
    expected = [f"fastgen::mass<__half, 64>, sm_90: {said}"] if said else []
    assert gate.check([compiled], [LIMIT]) == expected


def test_every_kernel_has_an_entry_and_every_entry_a_kernel() -> None:
    other = Limit("fastgen::store*", registers=40, shared=0)
    assert gate.check([kernel()] * 2, [other]) == [f"{kernel().name}: no entry in limits.toml"]
    assert gate.unused([kernel()], [LIMIT, other]) == ["fastgen::store*: no such kernel"]


def test_first_entry_counts() -> None:
    narrow = Limit("fastgen::mass<*, 64>", registers=39, shared=0)
    assert gate.limit_of(kernel(), [narrow, LIMIT]) == narrow
    assert gate.limit_of(kernel(), [LIMIT, narrow]) == LIMIT


def test_table() -> None:
    lines = gate.table([kernel()], [LIMIT]).splitlines()
    assert [line.split() for line in lines] == [
        ["kernel", "sm_80", "sm_90", "sm_100", "limit", "shared", "limit"],
        ["fastgen::mass<__half,", "64>", "-", "40", "-", "40", "0", "512"],
    ]


def test_committed_limits_are_read() -> None:
    assert all(limit.registers <= 255 for limit in gate.load_limits(gate.LIMITS))


def test_unknown_key_of_an_entry(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text('[[kernel]]\nname = "a"\nregisters = 8\nshared = 0\nspills = 4\n')
    with pytest.raises(TypeError, match="spills"):
        gate.load_limits(limits)


def test_a_violated_limit_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Tools:
        nvdisasm = Path("nvdisasm")

    limits = tmp_path / "limits.toml"
    limits.write_text('[[kernel]]\nname = "fastgen::*"\nregisters = 39\nshared = 0\n')
    monkeypatch.setattr(gate, "compile_file", lambda source: [kernel()])
    monkeypatch.setattr(toolkit, "find", Tools)
    assert gate.main(["--limits", str(limits), "a.cu"]) == 1
    assert "mass<__half, 64>, sm_90: 40 registers, limit 39" in capsys.readouterr().err
    limits.write_text(limits.read_text().replace("39", "40"))
    assert gate.main(["--limits", str(limits), "a.cu"]) == 0
