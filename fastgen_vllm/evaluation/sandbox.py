"""A child process for Python that a model wrote: bounded in time, memory and files."""

import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import IO, NamedTuple

#: Bytes that a program may write to one file.
FILE_BYTES = 2**20
#: Files that a program may hold open.
OPEN_FILES = 64
#: Bytes of a reason that are kept.
REASON_BYTES = 200

# What the child runs. It takes token and program from stdin, takes the limits on itself, hides
# stdin and stdout from the program, and writes the token to what was stdout only after the
# program's last line.
_BOOTSTRAP = """
import os, resource, sys, types

def limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))

def main(cpu_seconds, memory_bytes, file_bytes, open_files, reason_bytes):
    token, _, source = sys.stdin.buffer.read().partition(b"\\n")
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, cpu_seconds)
    limit(resource.RLIMIT_FSIZE, file_bytes)
    limit(resource.RLIMIT_NOFILE, open_files)
    limit(resource.RLIMIT_AS, memory_bytes)
    module = sys.modules["program"] = types.ModuleType("program")
    try:
        exec(compile(source, "program", "exec", dont_inherit=True), module.__dict__)
    except MemoryError:
        ending = b"out of memory"
    except BaseException as error:
        ending = f"{type(error).__name__}: {error}".encode(errors="replace")[:reason_bytes]
    else:
        ending = token
    os.write(report, ending)
    os._exit(ending is not token)

main(*map(int, sys.argv[1:]))
"""


class Outcome(NamedTuple):
    """How a program ended.

    Attributes:
        passed: its last line was reached without an exception.
        reason: one line, "passed" or what stopped it.
    """

    passed: bool
    reason: str


def run_program(program: str, seconds: float = 10, memory_bytes: int = 2**30) -> Outcome:
    """Run a Python program in a child process; it passes if it runs to its end.

    The program sees the standard library only, an empty directory, no input and none of this
    process's environment; what it prints is dropped. Leaving early, even with status 0, is
    not passing. What it started and left behind is killed with it.

    This limits accidents of honest programs and is no security boundary: the program has the
    rights of this user, the network and the file system, a child that takes a session of its
    own outlives it, and memory is limited for each process and not for their sum. Programs
    that mean harm need a container or a virtual machine around the whole evaluation.

    Args:
        program: source text.
        seconds: wall-clock limit.
        memory_bytes: limit of the address space, which holds the interpreter as well (30 MB).
    """
    token = secrets.token_hex().encode()
    cpu_seconds = math.ceil(seconds) + 1
    limits = (cpu_seconds, memory_bytes, FILE_BYTES, OPEN_FILES, REASON_BYTES)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as report,
    ):
        source.write(token + b"\n" + program.encode(errors="replace"))
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, *map(str, limits)],
            stdin=source,
            stdout=report,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={"HOME": directory, "TMPDIR": directory, "LANG": "C.UTF-8", "PATH": os.defpath},
            start_new_session=True,
        )
        try:
            ended = _wait(process.pid, seconds)
        finally:
            _kill_group(process)
        if not ended:
            return Outcome(False, f"timed out after {seconds:g} s")
        return _outcome(process.returncode, token, report)


def _wait(pid: int, seconds: float) -> bool:
    """Whether a child ended in time. It stays a zombie, so that its group's id is not reused."""
    deadline = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(status: int, token: bytes, report: IO[bytes]) -> Outcome:
    report.seek(0)
    ending = report.read(REASON_BYTES)
    if status == 0 and ending == token:
        return Outcome(True, "passed")
    if status < 0:
        return Outcome(False, f"killed by signal {-status}")
    lines = ending.decode(errors="replace").splitlines()
    if not lines:
        return Outcome(False, f"exited with status {status} before its end")
    return Outcome(False, lines[0].removesuffix(": "))
