"""The one mapping from our errors to HTTP, and SGLang's error bodies brought into the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import orjson

from dlm_sglang.errors import RequestError, shown

REFUSED_STATUS = HTTPStatus.BAD_REQUEST
STATUS_BY_CODE: Mapping[str, HTTPStatus] = {
    "request-too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "model_not_found": HTTPStatus.NOT_FOUND,
    "too-many-requests": HTTPStatus.TOO_MANY_REQUESTS,
    "server-overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
    "server-draining": HTTPStatus.SERVICE_UNAVAILABLE,
    "request-timeout": HTTPStatus.GATEWAY_TIMEOUT,
}
# What OpenAI's clients look at when they decide how to go on.
_TYPE_BY_STATUS = {HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error"}
RETRY_AFTER_S = 1
MAX_TOLD_CHARS = 200
_RETRIED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def status_of(error: RequestError) -> HTTPStatus:
    """The HTTP status that an error is answered with."""
    return STATUS_BY_CODE.get(error.code, REFUSED_STATUS)


def error_type(status: int) -> str:
    """OpenAI's `type` for a status."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return next((name for known, name in _TYPE_BY_STATUS.items() if known == status), "invalid_request_error")


def headers_of(error: RequestError) -> list[tuple[bytes, bytes]]:
    """Headers that belong to the error: when to come back."""
    return retry_headers(status_of(error))


def retry_headers(status: int) -> list[tuple[bytes, bytes]]:
    """`Retry-After` where trying again later can help."""
    return [(b"retry-after", str(RETRY_AFTER_S).encode())] if status in _RETRIED else []


def error_body(error: RequestError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object."""
    return {
        "error": {
            "message": str(error),
            "type": error_type(status_of(error)),
            "param": error.param,
            "code": error.code,
        }
    }


def overloaded(message: str) -> RequestError:
    """The error for a request that SGLang dropped because it has too many."""
    return RequestError(message.rstrip("."), param=None, code="server-overloaded", hint="try again later")


def of_validation(problems: Sequence[Mapping[str, object]]) -> RequestError:
    """The error for a body of the wrong shape, from pydantic's list of problems: the first one, and how many more.

    Where a field may have several types, each of them is a problem of its own: all that concern the field are told.
    """
    first = problems[0] if problems else {}
    param = _place(first)
    told = [_told(problem) for problem in problems if _place(problem) == param]
    more = len({_place(problem) for problem in problems}) - 1
    message = f"{param or 'the body'}: {' or '.join(dict.fromkeys(told))}, got {shown(first.get('input'))}"
    return RequestError(
        message + (f", and {more} more fields are wrong" if more else ""), param=param, code="invalid-body"
    )


def _place(problem: Mapping[str, object]) -> str | None:
    """The top-level field, or None for the body as a whole; below it stand pydantic's own names of types."""
    place = problem.get("loc")
    parts = [str(part) for part in place if part != "body"] if isinstance(place, tuple | list) else []
    head = parts[0] if parts else None
    return None if head is None or head.isdigit() else head


def _told(problem: Mapping[str, object]) -> str:
    return str(problem.get("msg", "invalid"))[:MAX_TOLD_CHARS]


def reshaped(body: bytes, status: int) -> bytes:
    """SGLang's flat error body in OpenAI's shape; anything else as it came."""
    try:
        flat = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(flat, dict) or flat.get("object") != "error" or "message" not in flat:
        return body
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return orjson.dumps(error_body(overloaded(str(flat["message"]))))
    told = {
        "message": flat["message"],
        "type": error_type(status),
        "param": flat.get("param"),
        "code": flat.get("code"),
    }
    return orjson.dumps({"error": told})
