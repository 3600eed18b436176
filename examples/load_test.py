"""A small load test over HTTP: FastGen beside stock vLLM, a few minutes on two cores.

    python examples/load_test.py
    python examples/load_test.py --rounds 3 --fastgen quarter       # more options of benchmark.py

Needs what ``make setup`` installs; it starts its servers itself. Both sides have the same pool,
threads and prompts. It is a taste: one round, few requests, models that are not compiled, and
tokens/s vary by 15 % or more. docs/benchmarks.md has the method, and results.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmark.py"
#: The pool is the point: four of these requests fit into it uncompressed.
LOAD = (
    "--engines stock,fastgen --enforce-eager --num-requests 12 --pool-gib 0.075 "
    "--prompt-len 768 --output-len 64 --concurrency 12"
)


def main() -> None:
    """Measure, and say what came out."""
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.json"
        command = [sys.executable, str(BENCHMARK), "serve", *LOAD.split(), "--json", str(results)]
        # It prints a table, with hardware and versions. Of an option given twice the last counts.
        if code := subprocess.call([*command, *sys.argv[1:]]):
            sys.exit(code)
        found = json.loads(results.read_text())
    for engine, metrics in found["median"].items():
        print(
            f"{engine}: kept {metrics['kept_share']:.2f} of the prompts, ran "
            f"{metrics['peak_running']:.0f} requests at a time, "
            f"{metrics['output_throughput']:.1f} output tokens/s"
        )


if __name__ == "__main__":
    main()
