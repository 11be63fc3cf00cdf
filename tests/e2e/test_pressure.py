"""Clients that leave and pools that overflow: nothing is lost, nothing stays behind, the tokens are the same."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import httpx
import pytest

from tests.e2e.asks import (
    AUTO,
    AUTOREGRESSIVE,
    Answer,
    Ask,
    Policy,
    answered,
    ask_all,
    async_client,
    diffusion,
    shuffled,
    speculation,
)
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server

NUM_REQUESTS = 300
CONCURRENCY = 100
MAX_EVENTS_BEFORE_CUT = 3
MAX_DELAY_S = 0.2
KINDS: dict[str, Policy] = {
    "autoregressive": AUTOREGRESSIVE,
    "self-speculation": speculation(16),
    "diffusion": diffusion(16, 8, 0.9),
    "diffusion-unseeded": diffusion(16, 8, None, seeded_blocks=False),
    "auto": AUTO,
}


def test_hundred_of_300_requests_cut_off_leave_nothing_behind(
    each_server: Server, oracle: Oracle, mixed_asks: list[Ask]
) -> None:
    rng = random.Random(300)
    asks = list(islice(cycle(shuffled(mixed_asks, seed=9)), NUM_REQUESTS))
    probes = shuffled(mixed_asks, seed=10)[:9]
    probes_before = ask_all(each_server.url, probes, concurrency=3)
    each_server.flush_cache()
    before = empty_load(each_server)

    cuts = [rng.choice(["abort", "disconnect"]) if number % 3 == 0 else None for number in range(NUM_REQUESTS)]
    outcomes = asyncio.run(under_fire(each_server, asks, cuts, rng))

    assert each_server.is_alive()
    each_server.wait_idle()
    each_server.flush_cache()
    assert empty_load(each_server) == before
    assert each_server.get("/health_generate").status_code == 200
    num_cut = outcomes.count(True)
    assert num_cut > NUM_REQUESTS // 6, f"only {num_cut} requests were cut off; the others ended before"
    survivors = [(one, outcome) for one, outcome in zip(asks, outcomes, strict=True) if isinstance(outcome, Answer)]
    assert len(survivors) == NUM_REQUESTS * 2 // 3
    wrong = oracle.mismatches([one for one, _ in survivors], [outcome for _, outcome in survivors])
    assert not wrong, "\n".join(wrong)
    probes_after = ask_all(each_server.url, probes, concurrency=3)
    assert [answer.output_ids for answer in probes_after] == [answer.output_ids for answer in probes_before]


def empty_load(server: Server) -> dict[str, Any]:
    """What an idle server with a flushed cache holds; all of it must be nothing."""
    load = server.wait_idle()
    held = {name: load[name] for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens", "token_usage")}
    return {**held, **load["queues"]}


async def under_fire(
    server: Server, asks: list[Ask], cuts: list[str | None], rng: random.Random
) -> list[Answer | bool]:
    """Send everything; the answer of each request, or for those to cut whether the cut came before their end."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(client: httpx.AsyncClient, number: int, num_events: int, delay_s: float) -> Answer | bool:
        async with gate:
            cut = cuts[number]
            if cut is None:
                return await answered(client, asks[number])
            stream = {**asks[number].body(stream=True), "rid": f"cut-{number}"}
            return await cut_off(client, stream, cut, num_events, delay_s)

    async with async_client(server.url) as client:
        moments = [(rng.randint(0, MAX_EVENTS_BEFORE_CUT), rng.uniform(0, MAX_DELAY_S)) for _ in asks]
        return list(await asyncio.gather(*(one(client, number, *moment) for number, moment in enumerate(moments))))


async def cut_off(client: httpx.AsyncClient, body: dict[str, Any], cut: str, num_events: int, delay_s: float) -> bool:
    """Stream a request and end it some time after some events: close the connection, or have the server abort it.

    Without an event it may be queued, or prefill; the delay lets the cut fall into any phase of a block.
    """
    async with client.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200
        events = (line async for line in response.aiter_lines() if line.startswith("data: "))
        for _ in range(num_events):
            if await anext(events, "data: [DONE]") == "data: [DONE]":
                return False
        await asyncio.sleep(delay_s)
        if cut == "disconnect":
            return True
        reply = await client.post("/abort_request", json={"rid": body["rid"]})
        assert reply.status_code == 200
        return any(['"type":"abort"' in line async for line in events])


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_retraction_under_a_tiny_pool_changes_no_token(
    each_small_server: Server, small_oracle: Oracle, prompts: list[tuple[int, ...]], kind: str
) -> None:
    policies = list(KINDS.values()) if kind == "mixed" else [KINDS[kind]]
    asks = [
        Ask(
            prompt_ids=prompts[number],
            policy=policies[number % len(policies)],
            max_new_tokens=120,
            ignore_eos=True,
            # Every second one samples: what a retracted request draws again must be what it drew before.
            **({"temperature": 0.8, "seed": number} if number % 2 else {}),
        )
        for number in range(16)
    ]
    answers = ask_all(each_small_server.url, asks, concurrency=len(asks))
    assert not (wrong := small_oracle.mismatches(asks, answers)), "\n".join(wrong)
    assert any(answer.meta["num_retractions"] > 0 for answer in answers)
    assert "Retract requests" in each_small_server.log
    for answer in answers:
        assert answer.num_tokens == len(answer.output_ids) == 120
    each_small_server.wait_idle()


def test_small_pool_is_empty_after_retractions(each_small_server: Server, prompts: list[tuple[int, ...]]) -> None:
    asks = [
        replace(Ask(prompt_ids=prompts[number], policy=policy), max_new_tokens=100, ignore_eos=True)
        for number, policy in enumerate([*KINDS.values()] * 3)
    ]
    ask_all(each_small_server.url, asks, concurrency=len(asks))
    each_small_server.flush_cache()
    assert set(empty_load(each_small_server).values()) == {0}
