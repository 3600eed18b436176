"""``python -m fastgen_vllm``, the same as the command ``fastgen-vllm``."""

import sys

from fastgen_vllm.server.cli import main

if __name__ == "__main__":
    sys.exit(main())
