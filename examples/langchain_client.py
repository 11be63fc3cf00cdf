"""The same server behind LangChain: one chat model for each mode, called in a chain and streamed.

pip install langchain-openai
python examples/langchain_client.py [http://127.0.0.1:30000/v1]
"""

from __future__ import annotations

import os
import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main() -> None:
    """Print what a chain answers in two modes, and a stream."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000/v1"
    key = os.environ.get("OPENAI_API_KEY", "none")
    prompt = ChatPromptTemplate.from_messages([("user", "What is {a} + {b}?")])
    for fields in ({"generation_mode": "self_speculation"}, {"generation_mode": "diffusion", "max_denoising_steps": 4}):
        model = ChatOpenAI(base_url=url, api_key=key, model="default", temperature=0, extra_body=fields)
        chain = prompt | model | StrOutputParser()
        print(f"{fields['generation_mode']}: {chain.invoke({'a': 15, 'b': 69})}")
        print("streamed:", "|".join(chain.stream({"a": 12, "b": 30})))


if __name__ == "__main__":
    main()
