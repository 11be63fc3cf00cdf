"""The pieces of ASGI that the layers of this package share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping

import orjson

from dlm_sglang.api.errors import error_body, headers_of, status_of
from dlm_sglang.errors import RequestError

Message = MutableMapping[str, object]
Scope = MutableMapping[str, object]
Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"
EVENTS = b"text/event-stream"


def route_path(scope: Scope) -> str:
    """The request's path as the routes know it, without the prefix that a proxy strips."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root else path


async def read_body(receive: Receive, scope: Scope, max_bytes: int | None) -> bytes | None:
    """The request's whole body, or None if the client left while sending it.

    Raises:
        RequestError: the body is larger than `max_bytes`, or says that it will be.
    """
    announced = header(scope, b"content-length")
    size = int(announced) if announced.isdigit() else 0
    parts: list[bytes] = []
    while max_bytes is None or size <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(body_of(message))
        if not message.get("more_body"):
            break
        size = max(size, sum(map(len, parts)))
    whole = b"".join(parts)
    if max_bytes is not None and max(size, len(whole)) > max_bytes:
        raise RequestError(
            f"the request body must have at most {max_bytes} bytes (max_request_bytes), "
            f"got {max(size, len(whole))} or more",
            param=None,
            code="request-too-large",
        )
    return whole


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what the server has to say, such as a disconnect."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying


async def send_whole(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """One complete response."""
    all_headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: RequestError) -> None:
    """Answer a request with an error in OpenAI's shape."""
    headers = [(b"content-type", JSON), *headers_of(error)]
    await send_whole(send, int(status_of(error)), headers, orjson.dumps(error_body(error)))


def body_of(message: Mapping[str, object]) -> bytes:
    """The bytes that a message carries."""
    body = message.get("body", b"")
    return bytes(body) if isinstance(body, bytes | bytearray | memoryview) else b""


def header(message: Mapping[str, object], name: bytes) -> bytes:
    """The first header of a name, in lower case, or nothing."""
    return next((value for key, value in headers(message) if key.lower() == name), b"")


def headers(message: Mapping[str, object]) -> Headers:
    """The headers of a scope or a response."""
    found = message.get("headers", ())
    return list(found) if isinstance(found, list | tuple) else []


def with_length(message: Mapping[str, object], length: int) -> Headers:
    """The message's headers for a body of another length."""
    kept = [(key, value) for key, value in headers(message) if key.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]
