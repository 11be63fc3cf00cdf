"""The ASGI layer in front of SGLang's own routes: checks and translates requests, reports what ran.

Nothing is buffered but the request's body, which SGLang's handlers read whole anyway. Streams are
passed on piece by piece, and a disconnect reaches SGLang as it would without this layer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping

import orjson

from dlm_sglang.api import report
from dlm_sglang.api.errors import REFUSED_STATUS, error_body
from dlm_sglang.api.translate import translate_generate, translate_openai
from dlm_sglang.errors import RequestError
from dlm_sglang.params import ServerLimits

logger = logging.getLogger(__name__)

Message = MutableMapping[str, object]
Scope = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Translate = Callable[[Mapping[str, object], ServerLimits], dict[str, object]]

ROUTES: Mapping[str, Translate] = {
    "/v1/chat/completions": translate_openai,
    "/v1/completions": translate_openai,
    "/invocations": translate_openai,
    "/generate": translate_generate,
}
METHODS = frozenset({"POST", "PUT"})


class DlmMiddleware:
    """Give SGLang's routes our request parameters and our part of the response.

    Args:
        app: the application behind this layer.
        limits: the server's limits, or None while the server runs another decode worker; then this
            layer does nothing.
    """

    def __init__(self, app: App, limits: Callable[[], ServerLimits | None]) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        translate = _translate_for(scope)
        limits = self.limits() if translate else None
        if translate is None or limits is None:
            await self.app(scope, receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            return
        try:
            body = _translated(body, translate, limits)
        except RequestError as error:
            logger.info("refused a request: %s (%s)", error.code, error.param)
            await _refuse(send, error)
            return
        current = report.Collector()
        token = report.collector.set(current)
        try:
            sender = send if translate is translate_generate else _Reporter(send, current)
            scope["headers"] = _with_length(scope, len(body))
            await self.app(scope, _replay(body, receive), sender)
        finally:
            report.collector.reset(token)


class _Reporter:
    """A `send` that puts the statistics into a successful response."""

    def __init__(self, send: Send, current: report.Collector) -> None:
        self._send = send
        self._current = current
        self._held: Message | None = None
        self._is_stream = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message.get("status") == 200:
            content_type = _header(message, b"content-type")
            self._is_stream = content_type.startswith(b"text/event-stream")
            if content_type.startswith(b"application/json"):
                self._held = message
                return
        elif message["type"] == "http.response.body":
            body = _body(message)
            if self._is_stream:
                message["body"] = report.add_to_events(body, self._current)
            elif self._held is not None:
                start, self._held = self._held, None
                if not message.get("more_body"):
                    message["body"] = body = report.add_to_json(body, self._current)
                    start["headers"] = _with_length(start, len(body))
                await self._send(start)
        await self._send(message)


def _translate_for(scope: Scope) -> Translate | None:
    if scope["type"] != "http" or scope.get("method") not in METHODS:
        return None
    path, root = str(scope.get("path", "")), str(scope.get("root_path", ""))
    return ROUTES.get(path.removeprefix(root) if root else path)


async def _read_body(receive: Receive) -> bytes | None:
    """The request's whole body, or None if the client left while sending it."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(_body(message))
        if not message.get("more_body"):
            return b"".join(parts)


def _translated(body: bytes, translate: Translate, limits: ServerLimits) -> bytes:
    """The body for SGLang; what is not a JSON object stays as it is, for SGLang to refuse."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    return orjson.dumps(translate(fields, limits)) if isinstance(fields, dict) else body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what the server has to say, such as a disconnect."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying


async def _refuse(send: Send, error: RequestError) -> None:
    body = orjson.dumps(error_body(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": int(REFUSED_STATUS), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _body(message: Mapping[str, object]) -> bytes:
    body = message.get("body", b"")
    return bytes(body) if isinstance(body, bytes | bytearray | memoryview) else b""


def _headers(message: Mapping[str, object]) -> list[tuple[bytes, bytes]]:
    headers = message.get("headers", ())
    return list(headers) if isinstance(headers, list | tuple) else []


def _header(message: Mapping[str, object], name: bytes) -> bytes:
    return next((value for key, value in _headers(message) if key.lower() == name), b"")


def _with_length(message: Mapping[str, object], length: int) -> list[tuple[bytes, bytes]]:
    """The message's headers for a body of another length."""
    headers = [(key, value) for key, value in _headers(message) if key.lower() != b"content-length"]
    return [*headers, (b"content-length", str(length).encode())]
