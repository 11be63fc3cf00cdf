"""Streams whose denoising is watched, and whether the blocks that they tell of are the oracle's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from dlm_sglang.reference.decoder import DenoiseStep
from tests.e2e.asks import Answer, Ask, async_client
from tests.e2e.oracle import Oracle

WATCHED = {"stream_denoising": True}

# What the oracle decodes without blocks: `auto` has some, of lengths that only the server knows.
BLOCKLESS = ("autoregressive", "auto")


@dataclass(frozen=True)
class Seen:
    """A stream of `/generate`: its answer and the blocks that came before its end."""

    answer: Answer
    blocks: list[dict[str, Any]]


def with_blocks(one: Ask) -> dict[str, Any]:
    body = one.body(stream=True)
    body["sampling_params"]["custom_params"] |= WATCHED
    return body


async def seen(client: httpx.AsyncClient, body: dict[str, Any]) -> Seen:
    blocks: list[dict[str, Any]] = []
    last: dict[str, Any] = {"output_ids": []}
    async with client.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert event["output_ids"][: len(last["output_ids"])] == last["output_ids"]
                blocks += event["meta_info"].get("dlm_denoising", [])
                last = event
    return Seen(Answer.of(last), blocks)


def seen_all(url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> list[Seen]:
    async def run() -> list[Seen]:
        gate = asyncio.Semaphore(concurrency)

        async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> Seen:
            async with gate:
                return await seen(client, body)

        async with async_client(url) as client:
            return list(await asyncio.gather(*(one(client, body) for body in bodies)))

    return asyncio.run(run())


def expected_steps(one: Ask, oracle: Oracle) -> list[DenoiseStep]:
    """What is told of a request: all denoise forwards but one that ends it, whose tokens are the answer's last."""
    result = oracle.result(one)
    ends_at_a_step = one.policy.mode == "diffusion" and result.num_commit_forwards < result.num_blocks
    return result.steps[:-1] if ends_at_a_step else result.steps


def check_blocks(blocks: list[dict[str, Any]], one: Ask, oracle: Oracle) -> bool:
    """Whether the blocks are the oracle's; what is true of any block in any case."""
    keeps_all = one.policy.mode == "diffusion"
    for block in blocks:
        length = len(block["positions"])
        assert length == len(block["token_ids"]) == len(block["tokens"]) == len(block["is_final"])
        assert block["positions"] == list(range(block["positions"][0], block["positions"][0] + length))
        for offset, token_id in enumerate(block["token_ids"]):
            assert (block["tokens"][offset] is None) == (token_id is None)
            is_seed = offset == 0 and one.policy.seeded_blocks
            assert block["is_final"][offset] == (token_id is not None and (keeps_all or is_seed))
    told = [(block["step"], block["positions"][0], block["token_ids"]) for block in blocks]
    return told == [(step.step, step.begin, step.canvas) for step in expected_steps(one, oracle)]
