"""Open requests per client, and the end of a request's time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dlm_sglang.api.guard import OpenRequests, Told, client_of, within
from dlm_sglang.errors import RequestError

EVENTS = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
WHOLE = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


def test_one_more_than_the_limit_is_refused_and_others_are_not() -> None:
    requests = OpenRequests()
    with requests.one_of("a", 2), requests.one_of("a", 2):
        with pytest.raises(RequestError, match="at most 2 requests") as caught, requests.one_of("a", 2):
            pass
        assert caught.value.code == "too-many-requests"
        with requests.one_of("b", 2):
            pass
    with requests.one_of("a", 1):
        pass
    assert not requests._open


def test_a_request_is_open_until_its_last_piece_not_until_its_handler_ends() -> None:
    """SGLang keeps the handler of a stream for two seconds more; that must not count against the client."""
    requests = OpenRequests()

    async def sent(message: Any) -> None:
        pass

    async def respond() -> None:
        with requests.one_of("a", 1) as done:
            told = Told(sent, done)
            await told(EVENTS)
            await told({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            assert requests._open["a"] == 1
            await told({"type": "http.response.body", "body": b""})
            with requests.one_of("a", 1):
                done()
                assert requests._open["a"] == 1

    asyncio.run(respond())
    assert not requests._open


def test_a_client_is_its_key_or_without_one_its_address() -> None:
    with_key: dict[str, object] = {"headers": [(b"authorization", b"Bearer s3cret")], "client": ("10.0.0.1", 1)}
    assert client_of(with_key) == client_of({**with_key, "client": ("10.0.0.2", 2)})
    assert "s3cret" not in client_of(with_key)
    assert client_of({"headers": [], "client": ("10.0.0.1", 1)}) == "10.0.0.1"


def run(seconds: float | None, messages: list[dict[str, Any]], then_s: float) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def respond(told: Told) -> None:
        for message in messages:
            await told(message)
        await asyncio.sleep(then_s)

    async def all_of_it() -> None:
        told = Told(send)
        await within(seconds, respond(told), told)

    asyncio.run(all_of_it())
    return sent


def test_a_response_in_time_is_not_touched() -> None:
    messages: list[dict[str, Any]] = [WHOLE, {"type": "http.response.body", "body": b"{}"}]
    assert run(None, messages, 0.0) == run(5.0, messages, 0.0) == messages


def test_a_request_without_an_answer_is_told_with_504() -> None:
    start, body = run(0.02, [], 5.0)
    assert start["status"] == 504
    assert b"request-timeout" in body["body"]


def test_a_stream_ends_with_an_error_event() -> None:
    *_, last = run(0.02, [EVENTS, {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}], 5.0)
    assert b"request-timeout" in last["body"]
    assert last["body"].endswith(b"data: [DONE]\n\n")
    assert not last.get("more_body")


def test_what_was_told_whole_is_not_told_again() -> None:
    assert len(run(0.02, [WHOLE, {"type": "http.response.body", "body": b"{}"}], 5.0)) == 2


def test_a_timeout_of_the_application_itself_is_its_own() -> None:
    async def send(message: Any) -> None:
        pytest.fail("nothing to tell")

    async def respond() -> None:
        raise TimeoutError("theirs")

    async def all_of_it() -> None:
        await within(5.0, respond(), Told(send))

    with pytest.raises(TimeoutError, match="theirs"):
        asyncio.run(all_of_it())
