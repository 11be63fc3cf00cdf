"""The load: clients that ask in every mode without a pause, and leave before the end now and then."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import aiohttp

from dlm_sglang.errors import DlmError
from dlm_sglang.measure.client import RequestRefused, ask
from dlm_sglang.param_table import GenerationMode

Fields = Mapping[str, object]
ABORTED_SHARE = 0.2
MAX_PATIENCE_S = 1.5
REFUSED_SHARE = 0.03
HOT_SHARE = 0.3
MAX_TOKENS = 96
MAX_SHOWN_ERRORS = 20
_FORMS: tuple[Fields, ...] = (
    {"generation_mode": "autoregressive"},
    {"generation_mode": "auto"},
    {"generation_mode": "self_speculation"},
    {"generation_mode": "self_speculation", "block_length": 8},
    {"generation_mode": "self_speculation", "draft_threshold": 0.5, "max_denoising_steps": 4},
    {"generation_mode": "diffusion"},
    {"generation_mode": "diffusion", "block_length": 8, "confidence_threshold": None, "max_denoising_steps": 3},
    {"generation_mode": "diffusion", "confidence_threshold": 0.6, "seeded_blocks": False},
)
_WRONG: Fields = {"generation_mode": "diffusion", "block_length": 100_000}
PROBES: tuple[Fields, ...] = tuple({"generation_mode": mode} for mode in GenerationMode)


class Load:
    """Clients of one server, and what came back to them.

    Attributes:
        counts: requests by how they ended: `MODE`, `aborted`, `refused` or `error`.
        tokens: output tokens of those that were answered.
        errors: the first errors, in words.
    """

    def __init__(self, url: str, prompts: Sequence[Sequence[Mapping[str, str]]], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.tokens = 0
        self.errors: list[str] = []
        self._url = url
        self._prompts = prompts
        self._seed = seed
        self._epoch_s = time.perf_counter()

    async def run(self, session: aiohttp.ClientSession, num_clients: int, until_s: float) -> None:
        """Keep every client asking until `time.monotonic()` is there; their last requests are waited for."""
        await asyncio.gather(*(self._client(session, number, until_s) for number in range(num_clients)))

    async def probe(self, session: aiohttp.ClientSession, num_prompts: int = 2) -> list[str]:
        """What the server answers to the same few requests; they must always be the same texts."""
        bodies = [
            self._body(messages, {**form, "temperature": 0})
            for messages in self._prompts[:num_prompts]
            for form in PROBES
        ]
        answers = [ask(session, self._url, body, stream=False, epoch_s=self._epoch_s) for body in bodies]
        return [record.text for record in await asyncio.gather(*answers)]

    def _body(self, messages: Sequence[Mapping[str, str]], fields: Fields) -> dict[str, object]:
        return {"model": "default", "messages": list(messages), "max_tokens": MAX_TOKENS, **fields}

    async def _client(self, session: aiohttp.ClientSession, number: int, until_s: float) -> None:
        chance = random.Random(self._seed * 1000 + number)
        while time.monotonic() < until_s:
            await self._one(session, chance)

    async def _one(self, session: aiohttp.ClientSession, chance: random.Random) -> None:
        messages, form = chance.choice(self._prompts), chance.choice(_FORMS)
        sampling: Fields = {"temperature": 0.8} if chance.random() < HOT_SHARE else {"temperature": 0}
        if chance.random() < REFUSED_SHARE:
            await self._refused(session, self._body(messages, _WRONG))
            return
        leaves = chance.random() < ABORTED_SHARE
        # One who leaves has asked for so much that there is something to leave.
        more: Fields = {"ignore_eos": True, "max_tokens": 10 * MAX_TOKENS} if leaves else {}
        body = self._body(messages, {**form, **sampling, **more})
        asked = ask(session, self._url, body, stream=chance.random() < 0.5 or leaves, epoch_s=self._epoch_s)
        try:
            record = await asyncio.wait_for(asked, chance.uniform(0, MAX_PATIENCE_S) if leaves else None)
        except TimeoutError:
            self.counts["aborted"] += 1
        except DlmError as error:
            self._note(error)
        else:
            self.counts[str(form["generation_mode"])] += 1
            self.tokens += record.output_tokens

    async def _refused(self, session: aiohttp.ClientSession, body: Fields) -> None:
        try:
            await ask(session, self._url, body, stream=False, epoch_s=self._epoch_s)
        except RequestRefused:
            self.counts["refused"] += 1
        except DlmError as error:
            self._note(error)
        else:
            self._note(DlmError(f"a wrong request was answered: {body}"))

    def _note(self, error: DlmError) -> None:
        self.counts["error"] += 1
        if len(self.errors) < MAX_SHOWN_ERRORS:
            self.errors.append(str(error))
