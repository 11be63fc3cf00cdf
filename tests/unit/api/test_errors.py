"""Errors on their way to the client."""

from __future__ import annotations

import json

import pytest

from dlm_sglang.api.errors import STATUS_BY_CODE, error_body, headers_of, of_validation, overloaded, reshaped, status_of
from dlm_sglang.errors import RequestError


@pytest.mark.parametrize(("code", "status"), [*STATUS_BY_CODE.items(), ("anything-else", 400)])
def test_a_code_has_its_status_and_openais_type(code: str, status: int) -> None:
    error = RequestError("no", param="x", code=code)
    told = error_body(error)["error"]
    assert status_of(error) == status
    assert told["code"] == code
    assert (told["type"] == "server_error") is (status >= 500)
    assert (told["type"] == "rate_limit_error") is (status == 429)
    assert bool(headers_of(error)) is (status in (429, 503))


def test_sglangs_flat_error_gets_openais_shape() -> None:
    flat = {"object": "error", "message": "bad", "type": "BadRequest", "param": None, "code": 400}
    assert json.loads(reshaped(json.dumps(flat).encode(), 400)) == {
        "error": {"message": "bad", "type": "invalid_request_error", "param": None, "code": 400}
    }


def test_a_full_queue_is_told_as_overload() -> None:
    flat = {"object": "error", "message": "The request queue is full.", "type": "503", "code": 503}
    told = json.loads(reshaped(json.dumps(flat).encode(), 503))["error"]
    assert told == error_body(overloaded("The request queue is full."))["error"]
    assert (told["type"], told["code"]) == ("server_error", "server-overloaded")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"error": {"message": "x"}}', b"text"])
def test_other_bodies_stay(body: bytes) -> None:
    assert reshaped(body, 400) == body


def test_a_body_of_the_wrong_shape_names_the_field_and_no_prompt() -> None:
    problems: list[dict[str, object]] = [
        {"loc": ("body", "stop", "str"), "msg": "Input should be a valid string", "input": 3},
        {"loc": ("body", "stop", "list[str]"), "msg": "Input should be a valid list", "input": 3},
        {"loc": ("body", "messages"), "msg": "Field required", "input": {"prompt": "secret" * 50}},
    ]
    error = of_validation(problems)
    assert error.param == "stop"
    assert error.message == (
        "stop: Input should be a valid string or Input should be a valid list, got 3, and 1 more fields are wrong"
    )
    assert len(of_validation(problems[2:]).message) < 200
    assert of_validation([]).param is None
