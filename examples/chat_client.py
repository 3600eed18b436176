"""A chat of several turns with the ``openai`` client, answers streamed, with usage.

    make serve                                     # in another terminal
    python examples/chat_client.py
    python examples/chat_client.py "What is a coroutine?" "And a generator?"

Needs a running server and ``pip install openai``; ``make setup`` installs it too.
"""

import argparse
import os
import textwrap
from pydoc_data.topics import topics

from openai import OpenAI

QUESTIONS = (
    f"{topics['naming'][:3000]}\n\nWhat is this text about?",  # long enough to be compressed
    "Say it in one sentence.",
    "Thank you!",
)


def main() -> None:
    """Ask all questions, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="(default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=64, help="(default: %(default)s)")
    options = parser.parse_args()
    key = os.environ.get("VLLM_API_KEY", "none")  # servers without a key take any
    client = OpenAI(base_url=f"{options.url}/v1", api_key=key)
    model = client.models.list().data[0].id

    messages = []
    for question in options.questions:
        messages.append({"role": "user", "content": question})
        stream = client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=options.max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        print(f"user: {textwrap.shorten(question, 70, placeholder='...')}")
        print("assistant: ", end="")
        answer, usage = "", None
        for chunk in stream:
            for choice in chunk.choices:  # the last chunk has none, it brings the usage
                print(choice.delta.content or "", end="", flush=True)
                answer += choice.delta.content or ""
            usage = chunk.usage or usage
        # All tokens count, kept or not. A turn's prompt is the chat so far.
        print(f"\n[{usage.prompt_tokens} prompt tokens, {usage.completion_tokens} generated]\n")
        messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
