"""The sandbox: what passes, what does not, and that nothing is left behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from fastgen_vllm.evaluation.sandbox import FILE_BYTES, OPEN_FILES, REASON_BYTES, run_program


@pytest.mark.parametrize(
    "program",
    [
        "",
        "assert sum(range(4)) == 6",
        # As the benchmark's programs and a model's habits need it.
        "def f(n):\n    return f(n - 1) + n if n else 0\nassert f(9) == 45",
        "print('x' * 2**24)\nimport sys\nsys.stderr.write('x' * 2**24)",
        "import sys\nassert __name__ != '__main__' and __name__ in sys.modules",
        "import sys\nassert sys.stdin.read() == ''",
        "import os\nos.lseek(0, 0, os.SEEK_SET)\nassert os.read(0, 99) == b''",
        "import threading\nthreading.Thread(target=__import__('time').sleep, args=[60]).start()",
        "s = 'ä☃'\nassert len(s) == 2\nprint(s)",
        "open('note', 'w').write('here')\nassert open('note').read() == 'here'",
    ],
)
def test_passes(program: str) -> None:
    assert run_program(program) == (True, "passed")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("assert False, 'no\\nmore'", "AssertionError: no"),
        ("raise ValueError('x' * 999)", f"ValueError: {'x' * (REASON_BYTES - 12)}"),
        ("def f(:", "SyntaxError: invalid syntax (program, line 1)"),
        ("\ud800", "SyntaxError: invalid syntax (program, line 1)"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("exit(0)", "NameError: name 'exit' is not defined"),
        ("import os; os._exit(0)", "exited with status 0 before its end"),
        ("import os; os._exit(3)", "exited with status 3 before its end"),
        ("import os; os.closerange(3, 99)", "exited with status 1 before its end"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("input()", "EOFError: EOF when reading a line"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("import torch", "ModuleNotFoundError: No module named 'torch'"),
        ("import fastgen_vllm", "ModuleNotFoundError: No module named 'fastgen_vllm'"),
        (f"open('f', 'wb').write(bytes(2 * {FILE_BYTES}))", "OSError: [Errno 27] File too large"),
        (
            f"files = [open('/dev/null') for _ in range({OPEN_FILES})]",
            "OSError: [Errno 24] Too many open files: '/dev/null'",
        ),
    ],
)
def test_fails(program: str, reason: str) -> None:
    assert run_program(program) == (False, reason)


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(2**29)",
        "x = []\nwhile True: x.append(bytearray(2**20))",
        "x = []\nwhile True: x.append(object())",
        "def f():\n    x = {}\n    while True: x[len(x)] = str(len(x))\nf()",
    ],
)
def test_memory_is_limited(program: str) -> None:
    assert run_program(program, memory_bytes=2**27) == (False, "out of memory")


def test_memory_below_the_limit_is_given() -> None:
    assert run_program("x = bytearray(2**26)", memory_bytes=2**27).passed


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal\nsignal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))\nwhile 1: pass",
        "try:\n    while True: pass\nfinally:\n    while True: pass",
        "import sys\nwhile True: print('x' * 9999, flush=True)",
    ],
)
def test_time_is_limited(program: str) -> None:
    start = time.monotonic()
    assert run_program(program, seconds=0.5) == (False, "timed out after 0.5 s")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("ending", ["", "assert False", "os._exit(0)", "time.sleep(60)"])
def test_processes_left_behind_are_killed(tmp_path: Path, ending: str) -> None:
    note = tmp_path / "pid"
    program = (
        "import os, subprocess, sys, time\n"
        "sleep = [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)']\n"
        "child = subprocess.Popen(sleep)\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n{ending}"
    )
    assert run_program(program, seconds=1).passed == (not ending)
    assert_dead(int(note.read_text()))


def assert_dead(pid: int) -> None:
    """The kernel ends a killed process when it gets to run; a zombie has ended."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    pytest.fail(f"process {pid} is alive")


def test_nothing_of_this_process_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(opened, True)
    program = (
        "import os, sys\n"
        "assert 'SECRET' not in os.environ, os.environ\n"
        "assert os.listdir() == [], os.listdir()\n"
        f"assert os.path.dirname(os.getcwd()) == {str(tmp_path)!r}\n"
        "fds = set(os.listdir('/proc/self/fd'))\n"
        f"assert {str(opened)!r} not in fds, fds\n"
        "open('left', 'w').close()"
    )
    try:
        assert run_program(program) == (True, "passed")
    finally:
        os.close(opened)
    assert list(tmp_path.iterdir()) == []


def test_writing_to_every_descriptor_is_not_passing() -> None:
    program = (
        "import os\n"
        "for fd in map(int, os.listdir('/proc/self/fd')):\n"
        "    try: os.write(fd, b'passed')\n"
        "    except OSError: pass\n"
        "os._exit(0)"
    )
    assert run_program(program) == (False, "passed")
