"""What our HTTP layer adds to a request and to a streamed event, beside SGLang's own server.

Two measurements. "servers": both servers up on the same weights, asked in turn, one request at a time; the difference
holds our layer and whatever else differs between the two, such as the decode loop. "layer": our layer alone in this
process, around an application that answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from dlm_sglang.api.asgi import App, Message, Receive, Scope, Send
from dlm_sglang.api.front import Front
from dlm_sglang.api.middleware import DlmMiddleware
from dlm_sglang.errors import DlmError
from dlm_sglang.measure.modes import machine
from dlm_sglang.measure.server import running_server

Say = Callable[[str], None]
CHAT = "/v1/chat/completions"
NUM_EVENTS = 32
_QUESTION: Mapping[str, object] = {
    "model": "default",
    "messages": [{"role": "user", "content": "What is 15 + 69?"}],
    "temperature": 0,
    "ignore_eos": True,
    "generation_mode": "autoregressive",
}
# One token is decided by the prefill: no decode round, ours or theirs, is in the time.
REQUEST: Mapping[str, object] = {**_QUESTION, "max_tokens": 1}
STREAM: Mapping[str, object] = {**_QUESTION, "max_tokens": NUM_EVENTS, "stream": True}


@dataclass(frozen=True)
class Added:
    """Times of one kind with and without our layer, in microseconds.

    Attributes:
        added_p50_us: median with it less median without it.
        added_p95_us: 95th percentile with it less that without it.
    """

    what: str
    samples: int
    without_p50_us: float
    with_p50_us: float
    without_p95_us: float
    with_p95_us: float
    added_p50_us: float
    added_p95_us: float


def measure(model_path: Path, rounds: int, say: Say) -> list[Added]:
    """Measure both, and print a row of each as it is there."""
    say(f"{'what':<28} {'samples':>7} {'without p50':>12} {'with p50':>10} {'added p50':>10} {'added p95':>10}  (us)")
    rows: list[Added] = []
    with contextlib.ExitStack() as stack:
        common = ["--model-path", str(model_path), "--dtype", "float32", "--mem-fraction-static", "0.1"]
        common += ["--max-total-tokens", "16384"]
        plain = stack.enter_context(running_server(common, "plain"))
        ours = stack.enter_context(running_server([*common, "--speculative-algorithm", "DLM"], "dlm"))
        for added in asyncio.run(_servers(plain, ours, rounds)):
            say(row_of(added))
            rows.append(added)
    for added in asyncio.run(_layer(rounds * 5)):
        say(row_of(added))
        rows.append(added)
    return rows


def row_of(added: Added) -> str:
    """One line of the table."""
    return (
        f"{added.what:<28} {added.samples:>7} {added.without_p50_us:>12.1f} {added.with_p50_us:>10.1f} "
        f"{added.added_p50_us:>10.1f} {added.added_p95_us:>10.1f}"
    )


def write_report(path: Path, rows: Sequence[Added], command: str) -> None:
    """Write the rows with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Times of single requests mean little on a machine that does other things: say how busy it was.
    load = {"load_average": os.getloadavg()}
    told = {"command": command, **machine(), **load, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


async def _servers(plain: str, ours: str, rounds: int) -> list[Added]:
    requests: dict[str, list[float]] = {plain: [], ours: []}
    events: dict[str, list[float]] = {plain: [], ours: []}
    async with aiohttp.ClientSession() as session:
        for number in range(rounds + 10):
            # Alternate the order, so that a drift of the machine favours nobody.
            for url in (plain, ours) if number % 2 == 0 else (ours, plain):
                seconds, gaps = await _ask(session, url)
                if number >= 10:
                    requests[url].append(seconds)
                    events[url] += gaps
    return [
        _added("servers: request", requests[plain], requests[ours]),
        _added("servers: streamed event", events[plain], events[ours]),
    ]


async def _ask(session: aiohttp.ClientSession, url: str) -> tuple[float, list[float]]:
    """The time of a whole request, and the times between the events of a streamed one."""
    begin = time.perf_counter()
    async with session.post(url + CHAT, json=REQUEST) as response:
        if response.status != 200:
            raise DlmError(f"the server answered {response.status}: {await response.text()}")
        await response.read()
    seconds = time.perf_counter() - begin
    gaps, before = [], 0.0
    async with session.post(url + CHAT, json=STREAM) as response:
        async for _ in response.content.iter_any():
            now = time.perf_counter()
            if before:
                gaps.append(now - before)
            before = now
    return seconds, gaps


async def _layer(rounds: int) -> list[Added]:
    """The same application bare and behind our layer, in turn."""
    layered = DlmMiddleware(_answer, Front)
    bare: list[float] = []
    behind: list[float] = []
    bare_stream: list[float] = []
    behind_stream: list[float] = []
    for _ in range(rounds):
        bare.append(await _call(_answer, REQUEST))
        behind.append(await _call(layered, REQUEST))
        bare_stream.append(await _call(_stream, STREAM) / NUM_EVENTS)
        behind_stream.append(await _call(DlmMiddleware(_stream, Front), STREAM) / NUM_EVENTS)
    return [_added("layer: request", bare, behind), _added("layer: streamed event", bare_stream, behind_stream)]


async def _call(app: App, body: Mapping[str, object]) -> float:
    sent = json.dumps(body).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": sent}

    async def send(message: Message) -> None:
        pass

    scope: Scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "client": ("127.0.0.1", 1)}
    begin = time.perf_counter()
    await app(scope, receive, send)
    return time.perf_counter() - begin


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    body = b'{"id":"x","object":"chat.completion","choices":[]}'
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


async def _stream(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    event = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"abc"},"finish_reason":null}]}\n\n'
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(NUM_EVENTS):
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _added(what: str, without: Sequence[float], with_it: Sequence[float]) -> Added:
    def at(values: Sequence[float], share: int) -> float:
        return 1e6 * statistics.quantiles(values, n=100)[share - 1]

    p50, p95 = (at(without, 50), at(with_it, 50)), (at(without, 95), at(with_it, 95))
    figures = (p50[0], p50[1], p95[0], p95[1], p50[1] - p50[0], p95[1] - p95[0])
    return Added(what, min(len(without), len(with_it)), *(round(figure, 1) for figure in figures))
