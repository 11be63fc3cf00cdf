"""A server that speaks just enough of the OpenAI API to be measured."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

WORDS = ["one", " two three", " four", " five"]
STATS = {
    "autoregressive": {"num_blocks": 5, "num_forwards": 5, "num_denoise_forwards": 0, "num_commit_forwards": 5},
    "diffusion": {"num_blocks": 1, "num_forwards": 2, "num_denoise_forwards": 2, "num_commit_forwards": 0},
    "self_speculation": {"num_blocks": 2, "num_forwards": 4, "num_denoise_forwards": 2, "num_commit_forwards": 2},
    "auto": {"num_blocks": 3, "num_forwards": 5, "num_denoise_forwards": 2, "num_commit_forwards": 3},
}
NUM_TOKENS = 5


class FakeServer:
    """Answers every chat with the same five tokens; can be told to refuse a mode, or to die."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.refused_mode = ""
        self.answers_until_death: int | None = None
        self.delay_s = 0.0
        self.running = self.most_running = self.flushes = 0
        self.url = ""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.arrivals.append(time.monotonic())
        if self.answers_until_death is not None and len(self.bodies) >= self.answers_until_death:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        self.bodies.append(body)
        mode = body.get("generation_mode", "self_speculation")
        if mode == self.refused_mode:
            return web.json_response({"error": {"message": f"no {mode} here"}}, status=400)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.delay_s)
        self.running -= 1
        stats = {"generation_mode": mode, **STATS[mode]}
        stats["tokens_per_forward"] = round(NUM_TOKENS / int(str(stats["num_forwards"])), 4)
        usage = {"prompt_tokens": 7, "completion_tokens": NUM_TOKENS}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return web.json_response({"choices": [choice], "usage": usage, "dlm": stats})
        return await self.stream(request, usage, stats)

    async def stream(self, request: web.Request, usage: object, stats: object) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        events: list[dict[str, object]] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
        events += [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in WORDS]
        events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "dlm": stats}]
        for event in [*events, {"choices": [], "usage": usage}]:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def flush(self, request: web.Request) -> web.Response:
        self.flushes += 1
        return web.Response()

    def run(self, is_up: threading.Event, stop: threading.Event) -> None:
        async def serve() -> None:
            app = web.Application()
            app.router.add_post("/v1/chat/completions", self.chat)
            app.router.add_get("/v1/models", self.models)
            app.router.add_post("/flush_cache", self.flush)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}"
            is_up.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)
            await runner.cleanup()

        asyncio.run(serve())


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server, is_up, stop = FakeServer(), threading.Event(), threading.Event()
    thread = threading.Thread(target=server.run, args=(is_up, stop))
    thread.start()
    assert is_up.wait(10)
    yield server
    stop.set()
    thread.join(10)
