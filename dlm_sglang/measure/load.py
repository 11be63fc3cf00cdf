"""Closed-loop load over HTTP, and what came back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from dlm_sglang.errors import DlmError

Fields = Mapping[str, object]


@dataclass(frozen=True)
class LoadResult:
    """Totals of one run of requests.

    Attributes:
        output_tokens: completion tokens, as the server bills them.
        num_forwards: decode forwards of all requests; 0 where the server does not report them.
        num_block_tokens: tokens that those forwards emitted (a prefill emits one more).
        elapsed_s: first send to last answer.
    """

    output_tokens: int
    num_forwards: int
    num_block_tokens: int
    elapsed_s: float

    @property
    def tok_s(self) -> float:
        return self.output_tokens / self.elapsed_s


def run_load(url: str, bodies: Sequence[Fields], concurrency: int) -> LoadResult:
    """Send every chat body once, at most `concurrency` at a time.

    Raises:
        DlmError: an answer is not a 200.
    """
    return asyncio.run(_run(url, bodies, concurrency))


async def _run(url: str, bodies: Sequence[Fields], concurrency: int) -> LoadResult:
    queue = iter(bodies)
    totals = [0, 0, 0]
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:

        async def user() -> None:
            for body in queue:
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    answer = await response.json()
                    if response.status != 200:
                        raise DlmError(f"the server answered {response.status}: {answer}")
                totals[0] += answer["usage"]["completion_tokens"]
                cost = answer.get("dlm") or {"num_forwards": 0, "tokens_per_forward": 0.0}
                totals[1] += cost["num_forwards"]
                totals[2] += round(cost["tokens_per_forward"] * cost["num_forwards"])

        begin = time.monotonic()
        await asyncio.gather(*(user() for _ in range(concurrency)))
        return LoadResult(totals[0], totals[1], totals[2], time.monotonic() - begin)


def bodies_of(prompts: Sequence[Sequence[Mapping[str, str]]], count: int, fields: Sequence[Fields]) -> list[Fields]:
    """`count` chat bodies: prompts in turn, and with each the next of `fields`."""
    pairs = zip(itertools.cycle(prompts), itertools.cycle(fields), strict=False)
    return [
        {"model": "default", "messages": list(messages), "temperature": 0, **extra}
        for messages, extra in itertools.islice(pairs, count)
    ]
