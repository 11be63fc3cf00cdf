"""One request in the forms that the server and the oracle take, and batches of them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from dlm_sglang.reference.decoder import Mode, OracleParams

MODES: tuple[Mode | Literal["auto"], ...] = ("autoregressive", "self_speculation", "diffusion", "auto")
REQUEST_TIMEOUT_S = 240.0


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a request decodes, all of it given; the fields are those of the request parameters."""

    mode: Mode | Literal["auto"]
    block_length: int = 1
    max_denoising_steps: int = 1
    confidence_threshold: float | None = None
    draft_threshold: float = 0.0
    seeded_blocks: bool = True
    latency_budget_ms: int | None = None

    def fields(self) -> dict[str, Any]:
        """What a client sends."""
        sent = self._fields()
        return sent if self.latency_budget_ms is None else sent | {"latency_budget_ms": self.latency_budget_ms}

    def _fields(self) -> dict[str, Any]:
        if self.mode in ("autoregressive", "auto"):
            return {"generation_mode": self.mode}
        sent: dict[str, Any] = {"generation_mode": self.mode, "block_length": self.block_length}
        if self.mode == "diffusion":
            return sent | {
                "max_denoising_steps": self.max_denoising_steps,
                "confidence_threshold": self.confidence_threshold,
                "seeded_blocks": self.seeded_blocks,
            }
        if self.draft_threshold > 0:
            sent["max_denoising_steps"] = self.max_denoising_steps
        return sent | {"draft_threshold": self.draft_threshold}


AUTOREGRESSIVE = Policy(mode="autoregressive")
# However it decodes, the tokens are those of autoregressive decoding.
AUTO = Policy(mode="auto")


def speculation(block_length: int, draft_threshold: float = 0.0, max_denoising_steps: int = 1) -> Policy:
    return Policy(
        mode="self_speculation",
        block_length=block_length,
        draft_threshold=draft_threshold,
        max_denoising_steps=max_denoising_steps,
    )


def diffusion(
    block_length: int, max_denoising_steps: int, confidence_threshold: float | None, seeded_blocks: bool = True
) -> Policy:
    return Policy(
        mode="diffusion",
        block_length=block_length,
        max_denoising_steps=max_denoising_steps,
        confidence_threshold=confidence_threshold,
        seeded_blocks=seeded_blocks,
    )


SPECULATIONS = (
    *(speculation(block_length) for block_length in (2, 8, 16, 32)),
    speculation(8, draft_threshold=0.5, max_denoising_steps=4),
    speculation(16, draft_threshold=0.9, max_denoising_steps=3),
)
DIFFUSIONS = tuple(
    diffusion(block_length, steps, threshold, seeded)
    for block_length in (2, 8, 16, 32)
    for steps in (1, 2, 4, 16)
    if steps <= block_length
    for threshold in (None, 0.5, 0.9)
    for seeded in (True, False)
)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, in token ids."""

    prompt_ids: tuple[int, ...]
    policy: Policy
    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    # Further `sampling_params`, and fields beside them; a dict would not be hashable.
    sampling: tuple[tuple[str, Any], ...] = ()
    native: tuple[tuple[str, Any], ...] = ()

    def body(self, *, stream: bool = False) -> dict[str, Any]:
        """For `/generate`."""
        sampling: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "ignore_eos": self.ignore_eos,
            "custom_params": self.policy.fields(),
        }
        if self.seed is not None:
            sampling["sampling_seed"] = self.seed
        if self.stop_token_ids:
            sampling["stop_token_ids"] = list(self.stop_token_ids)
        if self.stop:
            sampling["stop"] = list(self.stop)
        sampling |= dict(self.sampling)
        return {"input_ids": list(self.prompt_ids), "sampling_params": sampling, "stream": stream, **dict(self.native)}

    def oracle_params(self) -> OracleParams:
        policy = self.policy
        return OracleParams(
            mode="autoregressive" if policy.mode == "auto" else policy.mode,
            block_length=policy.block_length,
            max_denoising_steps=policy.max_denoising_steps,
            confidence_threshold=policy.confidence_threshold,
            draft_threshold=policy.draft_threshold,
            seeded_blocks=policy.seeded_blocks,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed or 0,
        )


@dataclass(frozen=True)
class Answer:
    """What `/generate` gave."""

    output_ids: list[int]
    text: str
    meta: dict[str, Any] = field(repr=False)

    @property
    def finish_type(self) -> str:
        return str(self.meta["finish_reason"]["type"])

    @property
    def num_tokens(self) -> int:
        return int(self.meta["completion_tokens"])

    @property
    def stats(self) -> dict[str, Any]:
        return dict(self.meta["dlm"])

    @classmethod
    def of(cls, reply: dict[str, Any]) -> Answer:
        return cls(reply["output_ids"], reply["text"], reply["meta_info"])


def ask(url: str, one: Ask, *, stream: bool = False) -> Answer:
    """One request alone."""
    return ask_all(url, [one], concurrency=1, stream=stream)[0]


def ask_all(url: str, asks: Sequence[Ask], *, concurrency: int, stream: bool = False) -> list[Answer]:
    """Many requests, at most `concurrency` of them at a time; as one ends the next one starts."""

    async def run() -> list[Answer]:
        gate = asyncio.Semaphore(concurrency)

        async def one(client: httpx.AsyncClient, single: Ask) -> Answer:
            async with gate:
                return await (streamed(client, single) if stream else answered(client, single))

        async with async_client(url) as client:
            return list(await asyncio.gather(*(one(client, single) for single in asks)))

    return asyncio.run(run())


def async_client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits)


async def answered(client: httpx.AsyncClient, one: Ask) -> Answer:
    response = await client.post("/generate", json=one.body())
    assert response.status_code == 200, response.text
    return Answer.of(response.json())


async def streamed(client: httpx.AsyncClient, one: Ask) -> Answer:
    """The last event, having checked that the events before it only ever grew towards it."""
    last: dict[str, Any] = {"output_ids": [], "text": ""}
    async with client.stream("POST", "/generate", json=one.body(stream=True)) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            assert event["output_ids"][: len(last["output_ids"])] == last["output_ids"]
            last = event
    return Answer.of(last)


def shuffled(asks: Sequence[Ask], seed: int) -> list[Ask]:
    """The same requests in another order, always the same one: neighbours in a batch are of any mode."""
    mixed = list(asks)
    random.Random(seed).shuffle(mixed)
    return mixed
