"""One prompt, compressed in several ways: FastGen's arguments of a single request.

    make serve                                     # in another terminal
    python examples/per_request.py

Needs a server of ``fastgen-vllm serve`` and ``pip install openai``; ``make setup`` installs it too.
"""

import argparse
import json
import os
from collections import Counter
from pydoc_data.topics import topics
from typing import Any
from urllib.request import Request, urlopen

from openai import OpenAI

#: What goes into "vllm_xargs"; docs/reference/options.md lists all of them.
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},  # as the server is configured
    {"fastgen": "off"},
    {"fastgen_recovery": 0.97},
    {"fastgen_keep": 0.25},
    {"fastgen_keep_tokens": 256},
    {"fastgen_policy": "full"},
)


def main() -> None:
    """Show for each set of arguments what is kept of the prompt, and the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="(default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=24, help="(default: %(default)s)")
    options = parser.parse_args()
    key = os.environ.get("VLLM_API_KEY", "none")  # servers without a key take any
    client = OpenAI(base_url=f"{options.url}/v1", api_key=key)
    model = client.models.list().data[0].id
    question = f"{topics['specialnames'][:3000]}\n\nWhat is this text about?"
    messages = [{"role": "user", "content": question}]

    for arguments in ARGUMENTS:
        # How a request would be compressed; nothing is answered.
        asked = Request(
            f"{options.url}/fastgen/profile",
            json.dumps({"messages": messages, "arguments": arguments}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        with urlopen(asked) as response:
            profile = json.load(response)
        heads = Counter(head["policy"] for layer in profile["heads"] for head in layer)
        why = profile["uncompressed_because"] or ", ".join(
            f"{policy} in {count} heads" for policy, count in heads.items()
        )
        # The request itself.
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=options.max_tokens,
            temperature=0,
            extra_body={"vllm_xargs": arguments},
        )
        print(f"{arguments or 'as configured'}")
        print(f"  kept: {profile['kept_share']:.2f} of {profile['prompt_tokens']} tokens ({why})")
        print(f"  answer: {answer.choices[0].message.content!r}")


if __name__ == "__main__":
    main()
