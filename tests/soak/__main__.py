"""Mixed load on a pool that is too small, for as long as you like: `make soak ARGS="--minutes 30"`.

Each minute the load pauses, and what must hold of an idle server is checked: its pool is whole, its
counters are what clients saw, control prompts are answered as at first, memory settles. Exit code
0 if all held, 1 if not, 2 if it could not run. Flags after `--` are for the server that is started.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from fastgen_vllm.benchmark.process import stoppable
from tests.server.running import Server
from tests.soak.client import Client
from tests.soak.soak import Soak
from tests.soak.tally import kinds, lines
from tests.soak.traffic import Load

#: A pool for two long prompts, prefilled in chunks.
FLAGS = (
    *("--kv-cache-memory-bytes", "40M", "--max-model-len", "1024", "--max-num-seqs", "32"),
    *("--max-num-batched-tokens", "256", "--scheduling-policy", "priority"),
    *("--enforce-eager", "--enable-scale-out"),
)
LOG = Path("build/soak/server.log")

say = partial(print, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Start a server, or take one, and soak it; the exit code."""
    options = parser().parse_args(arguments)
    try:
        with stoppable(), server_at(options) as url:
            return asyncio.run(soak(url, options.minutes, options.seed))
    except NoServer as error:
        print(f"soak: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("soak: error: interrupted", file=sys.stderr)
    return 2


class NoServer(Exception):
    """There is nothing to soak."""


@contextmanager
def server_at(options: argparse.Namespace) -> Iterator[str]:
    """The URL of the server that was named, or of one that is stopped in the end.

    Raises:
        NoServer: it did not start.
    """
    if options.url is not None:
        yield options.url
        return
    flags = server_flags(options)
    say(f"serves with {' '.join(flags)}; its log is {options.log}")
    options.log.parent.mkdir(parents=True, exist_ok=True)
    server = Server(options.log, *flags)
    try:
        try:
            server.wait()
        except (AssertionError, pytest.fail.Exception):
            raise NoServer(f"the server does not start, see {options.log}") from None
        yield server.url
    finally:
        server.stop()


def server_flags(options: argparse.Namespace) -> tuple[str, ...]:
    """Of `fastgen-vllm serve`; what was given last counts."""
    return ("--fastgen", options.fastgen, *FLAGS, *options.flags)


async def soak(url: str, minutes: float, seed: int) -> int:
    """Soak a server that runs; the exit code."""
    async with Client(url) as client:
        paths = frozenset((await client.get("/openapi.json")).json()["paths"])
        active = (await client.get("/fastgen/status")).json()["active"]
        run = Soak(client, Load(seed, paths, active), say)
        await run.run(minutes)
    for line in lines(run.faults):
        say(line)
    verdict = "FAIL" if run.faults else "PASS"
    say(f"{verdict}: {run.answered} answers, seed {seed}; faults: {kinds(run.faults)}")
    return 1 if run.faults else 0


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="soak", description=__doc__)
    made.add_argument("--minutes", type=float, default=30.0, help="default 30")
    made.add_argument("--seed", type=int, default=0, help="of the load; default 0")
    made.add_argument("--fastgen", default="balanced", help="preset, file or off; default balanced")
    made.add_argument("--url", help="of a server that runs; its memory is not watched")
    made.add_argument("--log", type=Path, default=LOG, help=f"of the server; default {LOG}")
    made.add_argument("flags", nargs="*", metavar="-- FLAG", help="of the server")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
