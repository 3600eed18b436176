"""What a quarter of an hour on a GPU is spent on, in order."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Seconds for all steps.
BUDGET = 540

PYTEST = ("pytest", "-v", "--tb=short", "-p", "no:cacheprovider")
#: Tests' references are loops in Python: a process for each core but two.
PROCESSES = max(1, min(len(os.sched_getaffinity(0)) - 2, 14))
SANITIZER = ("compute-sanitizer", "--error-exitcode", "86", "--print-limit", "10", "--tool")
#: Of Nsight Compute: share of memory's rate, of issue slots and of warps; bank conflicts.
METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "lts__t_sector_hit_rate.pct",
)
PROFILER = (
    *("ncu", "--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw"),
    *("--metrics", ",".join(METRICS)),
)


@dataclass(frozen=True)
class Step:
    """A process that may die, or take too long, and stops no other.

    Attributes:
        limit: seconds until it is stopped.
        module: run by ``python -m``.
        dry: other arguments of the module in a dry run.
        under: what Python runs under, if there is a GPU.
    """

    name: str
    limit: int
    module: Sequence[str]
    dry: Sequence[str] = ()
    under: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, python: str, dry: bool) -> list[str]:
        """The step's command."""
        module = self.dry if dry and self.dry else self.module
        return [*(() if dry else self.under), python, "-m", *module]


def _calls(what: str) -> tuple[str, str]:
    return ("tests.gpu_kit.calls", what)


def _measure(*what: str) -> tuple[str, ...]:
    return ("tests.gpu_kit.measure", *what)


def _sanitized(tool: str) -> Step:
    # Each tensor in memory of its own: its end is an end to the tool too.
    apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(tool, 110, _calls("few"), under=(*SANITIZER, tool), environment=apart)


#: Steps of a stage run at once; stages one after the other.
STAGES: tuple[tuple[Step, ...], ...] = (
    (Step("first calls", 30, _calls("few")),),
    (
        Step(
            "cold capture",
            60,
            (*PYTEST, "tests/gpu/test_device.py", "-k", "first_call_of_a_process"),
            environment={"CUDA_MODULE_LOADING": "LAZY"},
        ),
        Step("life", 60, (*PYTEST, "tests/gpu/test_runtime.py")),
        Step(
            "tests",
            110,
            (*PYTEST, "-n", str(PROCESSES), "--dist", "worksteal", "tests/gpu"),
            dry=(*PYTEST, "tests/gpu", "-k", "(test_device or test_store) and not pages_of_16"),
        ),
        *(
            Step(f"self-check, {dtype}", 110, _calls(dtype))
            for dtype in ("float32", "float16", "bfloat16")
        ),
    ),
    (Step("times", 140, _measure("memory", "decode")),),
    (Step("variants", 40, _measure("variants")),),
    (Step("prompts and layers", 40, _measure("others", "layers")),),
    tuple(_sanitized(tool) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
    (Step("profile", 60, _measure("launches"), under=PROFILER),),
)
