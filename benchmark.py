"""Load test: vLLM with and without FastGen on the same requests, pool and threads.

    python benchmark.py offline --engines stock,fastgen --fastgen balanced --pool-gib 0.125
    python benchmark.py serve --engines stock,fastgen --concurrency 1,4,16 --plot serve.html
    python benchmark.py steps --contexts 1024,4096 --running 4,16 --json steps.json
    python benchmark.py kernels

Engines: `stock` is vLLM with the plugin installed but off, `bare` is vLLM without it,
`fastgen` has the preset or YAML file of --fastgen, `fastgen:PRESET` its own. Each
measurement is a fresh process. Engines take turns within a round, in the other order every
second round; tables give medians over rounds, ratios to stock and ranges.
"""

import sys

from fastgen_vllm.benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
