"""One engine's greedy answers: ``python -m ...generate MODEL off|DECODE_KERNEL FILE``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPTS = (
    "Once upon a time there was a lighthouse keeper who counted ships. " * 12,
    "def fibonacci(n):\n    if n < 2:\n        return n\n" * 10,
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is",
    "1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 " * 9,
)
NEW_TOKENS = 48


def main(arguments: Sequence[str]) -> None:
    """Answer the prompts and write token ids and the gap between the two likeliest of each."""
    model, kernel, file = arguments
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    import fastgen_vllm

    options: dict[str, Any] = dict(
        max_model_len=1024,
        max_num_seqs=4,
        kv_cache_memory_bytes=2**28,
        disable_log_stats=True,
        # On the CPU compiling takes minutes, and there are no graphs to get along with.
        enforce_eager=current_platform.is_cpu(),
    )
    if kernel != "off":
        changed = {"fastgen": {"force": True, "decode_kernel": kernel}}
        options = fastgen_vllm.llm_options("full", additional_config=changed, **options)
    llm = LLM(model, **options)
    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=2, ignore_eos=True)
    answers = []
    for output in llm.generate(list(PROMPTS), sampling, use_tqdm=False):
        answer = output.outputs[0]
        best = [sorted((p.logprob for p in top.values()), reverse=True) for top in answer.logprobs]
        gaps = [first - second for first, second, *_ in best]
        answers.append({"tokens": list(answer.token_ids), "gaps": gaps})
    Path(file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1:])
