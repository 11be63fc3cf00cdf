"""Limits on what a client may keep the server busy with: requests at a time, and seconds per request."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import orjson

from dlm_sglang.api.asgi import EVENTS, Message, Scope, Send, header, send_error
from dlm_sglang.api.errors import error_body
from dlm_sglang.errors import RequestError


class OpenRequests:
    """How many requests each client has open in this process."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_of(self, client: str, limit: int | None) -> Iterator[Callable[[], None]]:
        """Count one more request until the given function is called, at the latest while the context lasts.

        SGLang's handlers of streams live on for seconds after their last event; the client waits for none of it.

        Raises:
            RequestError: the client has `limit` requests open already.
        """
        if limit is None:
            yield lambda: None
            return
        if self._open[client] >= limit:
            raise RequestError(
                f"a client may have at most {limit} requests open at a time (max_concurrent_requests_per_key)",
                param=None,
                code="too-many-requests",
                hint="wait for one of them to end",
            )
        self._open[client] += 1
        is_open = True

        def end() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self._open -= Counter((client,))

        try:
            yield end
        finally:
            end()


def client_of(scope: Scope) -> str:
    """Who asks: the API key, as a digest, or without one the address."""
    key = header(scope, b"authorization")
    if key:
        return hashlib.sha256(key).hexdigest()
    client = scope.get("client")
    return str(client[0]) if isinstance(client, list | tuple) and client else "unknown"


async def within(seconds: float | None, response: Awaitable[None], told: Told) -> None:
    """Let a response run its time; cancel it then, which aborts its decoding, and tell the client.

    Args:
        seconds: None is no limit.
        response: the running application.
        told: the `send` that the application was given.
    """
    if seconds is None:
        await response
        return
    try:
        async with asyncio.timeout(seconds) as clock:
            await response
    except TimeoutError:
        if not clock.expired():
            raise
        await told.end(
            RequestError(
                f"the request was not done within {seconds:g} s (request_timeout_s), so it was ended",
                param=None,
                code="request-timeout",
                hint="ask for fewer tokens",
            )
        )


class Told:
    """A `send` that knows what the client was told, so that a response can be ended early.

    Args:
        send: to the client.
        done: called before the last message goes out.
    """

    def __init__(self, send: Send, done: Callable[[], None] = lambda: None) -> None:
        self._send = send
        self._done = done
        self._start: Message | None = None
        self._is_done = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._is_done = not message.get("more_body")
        if self._is_done:
            self._done()
        await self._send(message)

    async def end(self, error: RequestError) -> None:
        """End the response with an error, as an answer or as an event, whichever is still possible."""
        if self._start is None:
            await send_error(self._send, error)
        elif not self._is_done and header(self._start, b"content-type").startswith(EVENTS):
            event = b"data: " + orjson.dumps(error_body(error)) + b"\n\ndata: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": event})
        # Any other response is of a known length: the server closes the connection, which tells the client enough.
