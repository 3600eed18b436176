"""Rounds in which engines take turns, and what is left of them if something goes wrong."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastgen_vllm.benchmark.engines import Engine, baseline, parse_engines
from fastgen_vllm.benchmark.facts import threads_of
from fastgen_vllm.benchmark.model import Models, find_model
from fastgen_vllm.benchmark.options import check_files, check_threads
from fastgen_vllm.benchmark.process import MeasurementFailed
from fastgen_vllm.benchmark.results import Results, Row, Sample, write_json
from fastgen_vllm.benchmark.table import Column, facts_text, make_table, markdown

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class Comparison:
    """What a subcommand compares.

    Attributes:
        measure: measures one engine in fresh processes.
        columns: metrics of the table.
    """

    engines: tuple[Engine, ...]
    facts: dict[str, Any]
    columns: Sequence[Column]
    measure: Callable[[Engine], Sequence[Sample]]


def sides_of(options: argparse.Namespace) -> tuple[tuple[Engine, ...], Models]:
    """Engines and their models, of the options that every comparison has.

    Raises:
        ValueError: one of these options cannot be used.
    """
    engines = parse_engines(options.engines, options.fastgen, options.when)
    check_files(options)
    check_threads(options.threads)
    found = {
        asked: find_model(asked, options.dtype)
        for asked in dict.fromkeys(engine.model or options.model for engine in engines)
    }
    return engines, {engine.name: found[engine.model or options.model] for engine in engines}


def run(comparison: Comparison, options: argparse.Namespace) -> int:
    """Measure all rounds, print the table and write files; return the exit code."""
    rows: list[Row] = []
    code = 0
    try:
        for number in range(1, options.rounds + 1):
            rows += _round(comparison, number, options.rounds)
            if options.json is not None:
                write_json(results_of(comparison, rows), options.json)
    except MeasurementFailed as failure:
        code = _stopped(str(failure), FAILED, rows, options)
    except OSError as error:
        code = _stopped(str(error), FAILED, rows, options)
    except KeyboardInterrupt:
        code = _stopped("interrupted", INTERRUPTED, rows, options)
    if rows:
        _show(results_of(comparison, rows), comparison.columns, options)
    return code


def results_of(comparison: Comparison, rows: Sequence[Row]) -> Results:
    """Finished rounds with their circumstances."""
    facts = {**comparison.facts, "threads": threads_of(rows)}
    return Results(facts, rows, baseline(comparison.engines).name)


def order(engines: Sequence[Engine], number: int) -> list[Engine]:
    """Who goes when in a round: every second round the other way around."""
    return list(engines if number % 2 else reversed(engines))


def _round(comparison: Comparison, number: int, rounds: int) -> list[Row]:
    rows = []
    for engine in order(comparison.engines, number):
        print(f"round {number}/{rounds}: {engine.name} ...", file=sys.stderr, flush=True)
        try:
            samples = comparison.measure(engine)
        except MeasurementFailed as failure:
            raise MeasurementFailed(f"engine {engine.name} failed:\n{failure}") from None
        rows += [Row(engine.name, number, sample) for sample in samples]
    return rows


def _show(results: Results, columns: Sequence[Column], options: argparse.Namespace) -> None:
    threads = results.facts["threads"]
    print(facts_text(results.facts))
    print()
    print(markdown(make_table(results, columns)))
    if len(set(threads.values())) > 1:
        print(f"\nNot comparable: the sides ran with different threads, {threads}.")
    if options.plot is not None:
        from fastgen_vllm.benchmark.plots import write_plot

        write_plot(results, columns, options.plot)


def _stopped(problem: str, code: int, rows: Sequence[Row], options: argparse.Namespace) -> int:
    finished = max((row.round for row in rows), default=0)
    print(f"benchmark.py {options.command}: error: {problem}", file=sys.stderr)
    if finished:
        where = f" and is in {options.json}" if options.json is not None else ""
        print(f"Finished rounds: {finished} of {options.rounds}; what follows is of those{where}.",
              file=sys.stderr)  # fmt: skip
    else:
        print("No round was finished.", file=sys.stderr)
    return code
