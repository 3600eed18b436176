"""Many prompts through ``vllm.LLM``, and what their KV caches hold while they run.

    python examples/offline_batch.py
    python examples/offline_batch.py --fastgen quarter --prompts 32 --model path/or/hub-name

Needs what ``make setup`` installs, and no server.
"""

import argparse
from pydoc_data.topics import topics

from vllm import LLM, SamplingParams

import fastgen_vllm
from fastgen_vllm.models.embedded import ensure_default_model


def main() -> None:
    """Answer all prompts and print what was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory or hub name (default: the embedded model)")
    parser.add_argument("--fastgen", default="balanced", help="preset or YAML file")
    parser.add_argument("--prompts", type=int, default=12, help="how many")
    options = parser.parse_args()

    llm = LLM(
        options.model or str(ensure_default_model()),
        **fastgen_vllm.llm_options(
            options.fastgen,
            max_model_len=2048,
            kv_cache_memory_bytes=2**27,
            additional_config={"fastgen": {"when": "always"}},  # not only in a full pool
            enforce_eager=True,  # starts sooner, answers more slowly
        ),
    )
    # Passages of the Python manual. Presets leave prompts below 512 tokens uncompressed.
    manual = "\n\n".join(topics.values())
    passages = [manual[3000 * number :][:3000] for number in range(options.prompts)]
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)

    # llm.generate(passages, params) would do. Step by step, the requests can be looked at.
    llm.enqueue(passages, params, use_tqdm=False)
    answers, seen, most = {}, {}, (0, 0)
    while llm.llm_engine.has_unfinished_requests():
        answers |= {output.request_id: output for output in llm.llm_engine.step()}
        (running,) = llm.collective_rpc("fastgen_requests")  # of every worker, and there is one
        seen |= {request["id"]: request for request in running if request["compacted"]}
        held = sum(request["blocks"] for request in running)
        most = max(most, (held, sum(request["blocks_uncompressed"] for request in running)))

    print("request  prompt tokens  kept  blocks  in stock vLLM  answer")
    for name, answer in answers.items():
        tokens, text = len(answer.prompt_token_ids), answer.outputs[0].text[:40]
        if (last := seen.get(name)) is None:
            print(f"{name:7}  {tokens:13}     1  (not compacted)        {text!r}")
            continue
        blocks = f"{last['blocks']:6}  {last['blocks_uncompressed']:13}"
        print(f"{name:7}  {tokens:13}  {last['kept_share']:.2f}  {blocks}  {text!r}")
    print(f"most blocks at a time: {most[0]}; the same tokens in stock vLLM: {most[1]}")

    (heads,) = llm.collective_rpc("fastgen_heads")  # means over all prompts
    shares = [share for layer in heads["kept_share"] for share in layer]
    print(f"kept of {heads['prompts']} prompts: {sum(shares) / len(shares):.2f}, ", end="")
    print(f"by single heads {min(shares):.2f} to {max(shares):.2f}")


if __name__ == "__main__":
    main()
