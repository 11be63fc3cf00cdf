"""Requests sent in a pattern: a number of users in a closed loop, or arrivals at a rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from dlm_sglang.measure.client import Record, ask

Send = Callable[[int], Awaitable[None]]
REQUEST_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Pattern:
    """How a load arrives: `concurrency` users who each wait for their answer, or `rate_s` arrivals a second."""

    concurrency: int | None = None
    rate_s: float | None = None

    @property
    def label(self) -> str:
        return f"{self.concurrency} concurrent" if self.rate_s is None else f"{self.rate_s:g} arrivals/s"


@dataclass(frozen=True)
class Run:
    """What a load gave; `elapsed_s` is first send to last answer."""

    records: list[Record]
    elapsed_s: float


def drive(
    url: str,
    bodies: Sequence[Mapping[str, object]],
    pattern: Pattern,
    *,
    stream: bool = True,
    seed: int = 0,
    api_key: str | None = None,
) -> Run:
    """Send every body once; records stand in the order of the bodies.

    Raises:
        ServerGone: the server stopped answering.
        RequestRefused: it does not take one of the bodies.
    """
    return asyncio.run(_drive(url.rstrip("/"), bodies, pattern, stream, seed, api_key))


async def _drive(
    url: str,
    bodies: Sequence[Mapping[str, object]],
    pattern: Pattern,
    stream: bool,
    seed: int,
    api_key: str | None,
) -> Run:
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers) as session:
        epoch_s = time.perf_counter()
        records: dict[int, Record] = {}

        async def send(number: int) -> None:
            records[number] = await ask(session, url, bodies[number], stream=stream, epoch_s=epoch_s)

        if pattern.rate_s is None:
            await _closed_loop(send, len(bodies), pattern.concurrency or 1)
        else:
            await _arrivals(send, len(bodies), pattern.rate_s, seed)
        return Run([records[number] for number in sorted(records)], time.perf_counter() - epoch_s)


async def _closed_loop(send: Send, count: int, concurrency: int) -> None:
    numbers = iter(range(count))

    async def user() -> None:
        for number in numbers:
            await send(number)

    await _all_or_first_error([user() for _ in range(min(concurrency, count))])


async def _arrivals(send: Send, count: int, rate_s: float, seed: int) -> None:
    """Independent users: exponential gaps, equal for equal seeds."""
    rng = random.Random(f"arrivals-{seed}")
    at_s = 0.0
    arrivals = []
    for number in range(count):
        arrivals.append((at_s, number))
        at_s += rng.expovariate(rate_s)

    async def later(delay_s: float, number: int) -> None:
        await asyncio.sleep(delay_s)
        await send(number)

    await _all_or_first_error([later(delay_s, number) for delay_s, number in arrivals])


async def _all_or_first_error(coroutines: Sequence[Coroutine[None, None, None]]) -> None:
    """Run all; the first error ends the others and is raised as itself, not in a group."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
