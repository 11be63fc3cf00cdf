"""Ask in every mode with the `openai` client, whole and streamed.

    python examples/openai_client.py [http://127.0.0.1:30000/v1]

The key is OPENAI_API_KEY, where the server has one.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI

MODES = (
    {"generation_mode": "autoregressive"},
    {"generation_mode": "self_speculation", "block_length": 32},
    {"generation_mode": "diffusion", "confidence_threshold": 0.9, "max_denoising_steps": 8},
)


def main() -> None:
    """Print an answer and its cost for each mode, and one that is streamed."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000/v1"
    client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id
    question = [{"role": "user", "content": "Extract JSON: In Vienna lives Ben, aged 74."}]
    for fields in MODES:
        answer = client.chat.completions.create(model=model, messages=question, temperature=0, extra_body=fields)
        cost = answer.model_extra["dlm"]
        print(f"{cost['generation_mode']}: {answer.choices[0].message.content}  ({cost['num_forwards']} forwards)")

    print("streamed: ", end="")
    # A client that can send no other field chooses the mode by the model's name.
    for chunk in client.chat.completions.create(
        model=f"{model}:diffusion", messages=question, temperature=0, stream=True
    ):
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
