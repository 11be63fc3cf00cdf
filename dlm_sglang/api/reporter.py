"""What our layer does to a response on its way out: add what ran, and bring errors into one shape."""

from __future__ import annotations

from http import HTTPStatus

import orjson

from dlm_sglang.api import report
from dlm_sglang.api.asgi import EVENTS, JSON, Headers, Message, Send, body_of, header, headers, with_length
from dlm_sglang.api.denoising import Block, chunk_like, is_chat_chunk
from dlm_sglang.api.errors import error_body, reshaped, retry_headers, status_of


class Reporter:
    """A `send` that puts the statistics and blocks into a successful response and gives errors OpenAI's shape.

    Args:
        send: where the response goes.
        current: what is known of the request by the time a part of the response passes.
        tells_what_ran: add the statistics and blocks; `/generate` has them in `meta_info` already.
    """

    def __init__(self, send: Send, current: report.Collector, *, tells_what_ran: bool = True) -> None:
        self._send = send
        self._current = current
        self._tells_what_ran = tells_what_ran
        self._held: Message | None = None
        self._parts: list[bytes] = []
        self._is_stream = False
        self._first_event = b""
        self._early_blocks: list[tuple[int, str, Block]] = []
        if tells_what_ran:
            current.show_block = self.show_block

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            content_type = header(message, b"content-type")
            if message.get("status") == HTTPStatus.OK:
                self._is_stream = self._tells_what_ran and content_type.startswith(EVENTS)
                holds = self._tells_what_ran and content_type.startswith(JSON)
            else:
                holds = content_type.startswith(JSON)
            if holds:
                self._held = message
                return
        elif message["type"] == "http.response.body":
            if self._is_stream:
                body = report.add_to_events(body_of(message), self._current)
                message["body"] = body if self._first_event else self._begun(body)
            elif self._held is not None:
                self._parts.append(body_of(message))
                if message.get("more_body"):
                    return
                await self._send_held(self._held, b"".join(self._parts))
                return
        await self._send(message)

    async def show_block(self, index: int, request_id: str, block: Block) -> None:
        """Send an event of a block that is still denoised, or keep it until the stream begins."""
        if not self._first_event:
            self._early_blocks.append((index, request_id, block))
            return
        event = chunk_like(self._first_event, index, request_id, block)
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    def _begun(self, body: bytes) -> bytes:
        """The stream's first piece, with the blocks that came before its text: a chat's first chunk has none yet."""
        self._first_event = body.partition(b"\n\n")[0]
        if not self._early_blocks:
            return body
        early = b"".join(chunk_like(self._first_event, *block) for block in self._early_blocks)
        return body + early if is_chat_chunk(self._first_event) else early + body

    async def _send_held(self, start: Message, body: bytes) -> None:
        status = start.get("status")
        if status == HTTPStatus.OK:
            body = report.add_to_json(body, self._current)
        elif isinstance(status, int):
            refusal = self._current.refusal
            if refusal is not None:
                start["status"] = status = int(status_of(refusal))
                body = orjson.dumps(error_body(refusal))
            else:
                body = reshaped(body, status)
            start["headers"] = [*headers(start), *retry_headers(status)]
        start["headers"] = with_length(start, len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


class Capture:
    """A `send` that keeps a whole response, for answers that are small and made anew."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message.get("status")
            self.status = status if isinstance(status, int) else 0
            self.headers = headers(message)
        elif message["type"] == "http.response.body":
            self._parts.append(body_of(message))

    @property
    def body(self) -> bytes:
        """All of the response's body."""
        return b"".join(self._parts)
