"""One chat request to any OpenAI-compatible server: when what came, and what it cost."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from dlm_sglang.errors import DlmError

STATS_KEY = "dlm"
_DATA = b"data: "
_OK = 200
FIRST_SERVER_ERROR = 500


class ServerGone(DlmError):
    """The server does not answer any more: what it was asked is lost, what it answered before is not."""

    default_code = "server-gone"


class RequestRefused(DlmError):
    """The server answered with an error: it does not take this setting."""

    default_code = "request-refused"


@dataclass
class Record:
    """One answered request; times in seconds.

    Attributes:
        sent_s: since the start of the load.
        ttft_s: sending to the first chunk with text; the whole answer where it is not streamed.
        gaps_s: between chunks with text.
        num_block_tokens: tokens that decode forwards emitted (a seeded answer's first token is the prefill's).
    """

    sent_s: float
    ttft_s: float
    latency_s: float
    gaps_s: list[float]
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    text: str = field(repr=False)
    num_forwards: int = 0
    num_denoise_forwards: int = 0
    num_commit_forwards: int = 0
    num_blocks: int = 0
    num_block_tokens: int = 0

    def add_cost(self, stats: Mapping[str, object]) -> None:
        """Take over what the response's `dlm` object says; it gives the mean, which is a ratio of integers."""

        def count(name: str) -> float:
            value = stats.get(name)
            return value if isinstance(value, int | float) else 0

        self.num_forwards = int(count("num_forwards"))
        self.num_denoise_forwards = int(count("num_denoise_forwards"))
        self.num_commit_forwards = int(count("num_commit_forwards"))
        self.num_blocks = int(count("num_blocks"))
        self.num_block_tokens = round(count("tokens_per_forward") * self.num_forwards)


async def ask(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, object], *, stream: bool, epoch_s: float
) -> Record:
    """Send one chat request and wait for its end.

    Args:
        epoch_s: `time.perf_counter()` at the start of the load.

    Raises:
        ServerGone: the connection failed or broke.
        RequestRefused: the server answered with an error.
    """
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body
    begun = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/chat/completions", json=sent) as response:
            if response.status != _OK:
                raise _refusal(response.status, await response.text())
            return await (_streamed(response, begun, epoch_s) if stream else _whole(response, begun, epoch_s))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ServerGone(f"{url} stopped answering: {error or type(error).__name__}") from None


def _refusal(status: int, text: str) -> DlmError:
    kind = ServerGone if status >= FIRST_SERVER_ERROR else RequestRefused
    try:
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        pass
    return kind(f"the server answered {status}: {text[:500]}")


async def _whole(response: aiohttp.ClientResponse, begun: float, epoch_s: float) -> Record:
    answer = await response.json()
    latency_s = time.perf_counter() - begun
    choice = answer["choices"][0]
    usage = answer.get("usage") or {}
    record = Record(
        sent_s=begun - epoch_s,
        ttft_s=latency_s,
        latency_s=latency_s,
        gaps_s=[],
        prompt_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
        finish_reason=choice.get("finish_reason") or "",
        text=choice["message"].get("content") or "",
    )
    record.add_cost(answer.get(STATS_KEY) or {})
    return record


async def _streamed(response: aiohttp.ClientResponse, begun: float, epoch_s: float) -> Record:
    record = Record(begun - epoch_s, 0.0, 0.0, [], 0, 0, "", "")
    arrivals: list[float] = []
    texts: list[str] = []
    is_complete = False
    async for line in response.content:
        if not line.startswith(_DATA):
            continue
        payload = line[len(_DATA) :].strip()
        if payload == b"[DONE]":
            is_complete = True
            break
        text = _read_event(json.loads(payload), record)
        if text:
            arrivals.append(time.perf_counter())
            texts.append(text)
    if not is_complete:
        raise ServerGone(f"{response.url.origin()} ended a stream before its end")
    ended = time.perf_counter()
    record.latency_s = (arrivals[-1] if arrivals else ended) - begun
    record.ttft_s = (arrivals[0] if arrivals else ended) - begun
    record.gaps_s = [after - before for before, after in itertools.pairwise(arrivals)]
    record.text = "".join(texts)
    return record


def _read_event(event: Mapping[str, object], record: Record) -> str:
    """Take everything but times out of one event; returns its text.

    Raises:
        ServerGone: the event is an error.
    """
    if "error" in event:
        raise ServerGone(f"the server ended a stream with an error: {event['error']}")
    usage = event.get("usage")
    if isinstance(usage, dict):
        record.prompt_tokens = usage.get("prompt_tokens", 0)
        record.output_tokens = usage.get("completion_tokens", 0)
    stats = event.get(STATS_KEY)
    if isinstance(stats, dict):
        record.add_cost(stats)
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices:
        return ""
    record.finish_reason = choices[0].get("finish_reason") or record.finish_reason
    delta = choices[0].get("delta") or {}
    return (delta.get("reasoning_content") or "") + (delta.get("content") or "")
