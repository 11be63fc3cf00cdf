"""The one mapping from our errors to HTTP."""

from __future__ import annotations

from http import HTTPStatus

from dlm_sglang.errors import RequestError

REFUSED_STATUS = HTTPStatus.BAD_REQUEST


def error_body(error: RequestError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object for a refused request."""
    return {
        "error": {
            "message": str(error),
            "type": "invalid_request_error",
            "param": error.param,
            "code": error.code,
        }
    }
