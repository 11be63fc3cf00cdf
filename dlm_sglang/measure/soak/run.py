"""One soak: load, probes and samples side by side, then a look at what is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from dlm_sglang.errors import DlmError
from dlm_sglang.measure.soak.load import Load
from dlm_sglang.measure.soak.memory import Sample, sample, trend

Say = Callable[[str], None]
IDLE_TIMEOUT_S = 60.0
_HELD = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")


@dataclass
class Outcome:
    """What a soak saw.

    Attributes:
        counts: requests by how they ended.
        probes: rounds of probe requests, the first one before the load and the last one after it.
        changed_probes: those rounds whose texts were not the first one's.
        left: what SGLang still counts when all clients have gone, by its own names; all of it must be 0.
        in_flight: our gauge of open requests, over all modes; must be 0.
        retracted: how often a request was put back for want of KV slots; 0 where the server has no metrics.
    """

    seconds: float
    clients: int
    counts: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    probes: int = 0
    changed_probes: int = 0
    left: dict[str, float] = field(default_factory=dict)
    in_flight: float = 0.0
    retracted: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What is wrong, one line each; empty when all is well."""
        found = [f"error: {error}" for error in self.errors]
        if self.changed_probes:
            found.append(f"{self.changed_probes} of {self.probes} rounds of probes gave other texts than the first")
        found += [f"{name} is {value:g} with nobody left" for name, value in self.left.items() if value]
        if self.in_flight:
            found.append(f"dlm_requests_in_flight is {self.in_flight:g} with nobody left")
        line = trend(self.samples)
        if not line.is_flat:
            found.append(
                f"memory grows by {line.slope_mib_per_min:.2f} +- {line.error_mib_per_min:.2f} MiB a minute "
                f"at {line.mean_mib:.0f} MiB"
            )
        return found


async def soak(
    url: str,
    pid: int,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    *,
    seconds: float,
    clients: int,
    seed: int = 0,
    num_samples: int = 180,
    num_probes: int = 30,
    say: Say = lambda _line: None,
) -> Outcome:
    """Load a server and watch it.

    Args:
        pid: the server's process, or one above it; its memory is that of all its descendants.
        num_samples: of the memory, evenly spaced.
        num_probes: rounds of probes under load, evenly spaced; one more before and one after it.

    Raises:
        DlmError: a probe was not answered.
    """
    outcome = Outcome(seconds, clients)
    load = Load(url, prompts, seed)
    # A client that the machine starves would find its idle connections closed, which is no fault of the server.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        first = await load.probe(session)
        begin = time.monotonic()

        async def watch_memory() -> None:
            while True:
                outcome.samples.append(sample(pid, time.monotonic() - begin))
                await asyncio.sleep(seconds / num_samples)

        async def watch_answers() -> None:
            while True:
                await asyncio.sleep(seconds / num_probes)
                outcome.probes += 1
                outcome.changed_probes += await load.probe(session) != first
                done = sum(load.counts.values())
                say(
                    f"{time.monotonic() - begin:6.0f} s  {done:7d} requests  {load.counts['aborted']:6d} aborted  "
                    f"{load.counts['error']:3d} errors  {outcome.samples[-1].rss_mib:8.1f} MiB"
                )

        watchers = [asyncio.create_task(watch_memory()), asyncio.create_task(watch_answers())]
        await load.run(session, clients, begin + seconds)
        for watcher in watchers:
            watcher.cancel()
        for result in await asyncio.gather(*watchers, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        outcome.left = await _until_idle(session, url)
        outcome.probes += 2
        outcome.changed_probes += await load.probe(session) != first
        metrics = await _metrics(session, url)
        outcome.in_flight = sum_of(metrics, "dlm_requests_in_flight")
        outcome.retracted = sum_of(metrics, "sglang_num_retracted_requests_total")
    outcome.counts, outcome.tokens, outcome.errors = dict(sorted(load.counts.items())), load.tokens, load.errors
    return outcome


async def _until_idle(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """SGLang's count of what it holds, once it is nothing, or what it is when that never comes."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while True:
        async with session.get(f"{url}/v1/loads", params={"include": "all"}) as response:
            told = await response.json()
        if not isinstance(told, dict) or not told.get("loads"):
            raise DlmError(f"the server told no load: {told}")
        left = {name: float(sum(one[name] for one in told["loads"])) for name in _HELD}
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.2)


async def _metrics(session: aiohttp.ClientSession, url: str) -> str:
    """The server's metrics; empty where it has none."""
    async with session.get(f"{url}/metrics/") as response:
        return await response.text() if response.status == 200 else ""


def sum_of(metrics: str, name: str) -> float:
    """A metric over all its labels; 0 where nothing was counted yet."""
    return sum(
        float(sample.value)
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        # SGLang's names have a colon for clients that take it.
        if sample.name.replace(":", "_") == name
    )
