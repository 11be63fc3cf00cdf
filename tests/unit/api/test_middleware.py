"""The ASGI layer around a recording application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from dlm_sglang.api import report
from dlm_sglang.api.front import Front
from dlm_sglang.api.middleware import DlmMiddleware
from dlm_sglang.params import DecodeParams, ServerLimits

LIMITS = ServerLimits()
FRONT = Front(LIMITS)
DEFAULTS = DecodeParams.from_fields({}, LIMITS).to_flat()
CHAT = "/v1/chat/completions"
STATS = {"generation_mode": "diffusion", "num_forwards": 4, "num_commit_forwards": 1, "tokens_per_forward": 2.0}


class Client:
    """Sends one request at a time to an ASGI application in this process."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **content)

        return asyncio.run(ask())

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.request("POST", path, **content)


class Server:
    """An application that records what it was sent and answers what it was told to."""

    def __init__(self, response: Response | None = None, outputs: list[object] | None = None) -> None:
        self.bodies: list[bytes] = []
        self.lengths: list[str | None] = []
        self.response = response
        self.outputs = outputs or []

    async def handle(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        self.lengths.append(request.headers.get("content-length"))
        for output in self.outputs:
            report.record_output(output)
        return self.response or JSONResponse({"id": "x", "object": "chat.completion"})

    def client(self, front: Front | None = FRONT) -> Client:
        paths = (CHAT, "/v1/completions", "/generate", "/invocations", "/v1/embeddings")
        app = Starlette(routes=[Route(path, self.handle, methods=["POST", "PUT", "GET"]) for path in paths])
        return Client(DlmMiddleware(app, lambda: front))

    def sent(self) -> dict[str, Any]:
        sent = json.loads(self.bodies[-1])
        assert isinstance(sent, dict)
        return sent


def test_a_request_reaches_the_route_translated_and_with_its_true_length() -> None:
    server = Server()
    answer = server.client().post(CHAT, json={"messages": [], "generation_mode": "ar", "temperature": 0.5})
    assert answer.status_code == 200
    expected = DecodeParams.from_fields({"generation_mode": "ar"}, LIMITS).to_flat()
    assert server.sent() == {"messages": [], "temperature": 0.5, "custom_params": {"dlm": expected}}
    assert server.lengths[-1] == str(len(server.bodies[-1]))


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/invocations"])
def test_every_openai_route_is_covered(path: str) -> None:
    server = Server()
    server.client().post(path, json={"block_length": 8})
    assert server.sent()["custom_params"]["dlm"]["block_length"] == 8


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_generate_is_covered_with_both_methods(method: str) -> None:
    server = Server()
    server.client().request(method, "/generate", json={"text": "a"})
    assert server.sent()["sampling_params"]["custom_params"]["dlm"] == DEFAULTS


def test_a_refusal_is_a_400_in_openais_shape_and_the_route_is_not_called() -> None:
    server = Server()
    answer = server.client().post(CHAT, json={"messages": [], "block_length": 64})
    assert answer.status_code == 400
    assert answer.json() == {
        "error": {
            "message": "block_length must be in 2..32, got 64",
            "type": "invalid_request_error",
            "param": "block_length",
            "code": "parameter-out-of-range",
        }
    }
    assert server.bodies == []


@pytest.mark.parametrize("body", [b"{", b"", b'{"a": NaN}', b"\xff\xfe"])
def test_what_is_not_json_is_left_to_sglang(body: bytes) -> None:
    server = Server()
    assert server.client().post(CHAT, content=body).status_code == 200
    assert server.bodies == [body]


@pytest.mark.parametrize("body", [b"[1]", b'"x"', b"null", b"3"])
def test_json_that_is_no_object_is_refused_and_shown(body: bytes) -> None:
    server = Server()
    answer = server.client().post(CHAT, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid-body"
    assert "must be a JSON object" in answer.json()["error"]["message"]
    assert server.bodies == []


def test_other_routes_and_methods_are_not_touched() -> None:
    server = Server()
    client = server.client()
    client.post("/v1/embeddings", content=b'{"block_length": 64}')
    client.request("GET", CHAT)
    assert server.bodies == [b'{"block_length": 64}', b""]


def test_a_server_with_another_algorithm_is_not_touched() -> None:
    server = Server()
    server.client(front=None).post(CHAT, content=b'{"block_length": 64}')
    assert server.bodies == [b'{"block_length": 64}']


def test_a_path_prefix_of_the_server_is_known() -> None:
    server = Server()
    inner = DlmMiddleware(Starlette(routes=[Route(CHAT, server.handle, methods=["POST"])]), lambda: FRONT)
    client = Client(Starlette(routes=[Mount("/prefix", app=inner)]))
    assert client.post(f"/prefix{CHAT}", json={"block_length": 1}).status_code == 400


def test_statistics_are_the_last_key_of_an_answer() -> None:
    outputs: list[object] = [{"text": "a", "meta_info": {"id": "x", "dlm": STATS}}]
    answer = Server(outputs=outputs).client().post(CHAT, json={"messages": []})
    assert answer.json() == {"id": "x", "object": "chat.completion", "dlm": STATS}
    assert answer.headers["content-length"] == str(len(answer.content))


def test_several_choices_are_summed_and_listed() -> None:
    slow = {**STATS, "num_forwards": 12, "num_commit_forwards": 3, "tokens_per_forward": 1.0}
    outputs: list[object] = [[{"meta_info": {"dlm": STATS}}, {"meta_info": {"dlm": slow}}]]
    told = Server(outputs=outputs).client().post(CHAT, json={"messages": [], "n": 2}).json()["dlm"]
    assert told["num_forwards"] == 16
    assert told["tokens_per_forward"] == pytest.approx((4 * 2.0 + 12 * 1.0) / 16)
    assert told["generation_mode"] == "diffusion"
    assert told["choices"] == [{"index": 0, **STATS}, {"index": 1, **slow}]


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse({"error": "no"}, status_code=400),
        PlainTextResponse("{}"),
        JSONResponse([1]),
    ],
)
def test_errors_and_other_content_are_not_touched(response: Response) -> None:
    outputs: list[object] = [{"meta_info": {"dlm": STATS}}]
    answer = Server(response, outputs).client().post(CHAT, json={"messages": []})
    assert answer.content == response.body


def test_no_statistics_no_key() -> None:
    assert "dlm" not in Server().client().post(CHAT, json={}).json()


def test_generate_answers_as_sglang_does() -> None:
    outputs: list[object] = [{"meta_info": {"dlm": STATS}}]
    assert "dlm" not in Server(outputs=outputs).client().post("/generate", json={"text": "a"}).json()


def event(index: int, finish_reason: str | None, content: str = "a") -> str:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish_reason}
    return f"data: {json.dumps({'id': 'x', 'choices': [choice]}, separators=(',', ':'))}\n\n"


def stream(events: list[str], outputs: list[object]) -> list[str]:
    async def body() -> AsyncIterator[str]:
        for output in outputs:
            report.record_output(output)
        for each in events:
            yield each

    response = StreamingResponse(body(), media_type="text/event-stream")
    return Server(response).client().post(CHAT, json={"stream": True}).text.split("\n\n")


def test_the_finishing_event_of_each_choice_carries_its_statistics() -> None:
    other = {**STATS, "num_forwards": 9}
    outputs: list[object] = [{"index": 0, "meta_info": {"dlm": STATS}}, {"index": 1, "meta_info": {"dlm": other}}]
    events = [event(0, None), event(1, "stop"), event(0, "length"), "data: [DONE]\n\n"]
    told = stream(events, outputs)
    assert told[0] + "\n\n" == events[0]
    assert json.loads(told[1].removeprefix("data: "))["dlm"] == other
    assert json.loads(told[2].removeprefix("data: "))["dlm"] == STATS
    assert told[3] == "data: [DONE]"


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_block_is_an_event_among_those_of_sglang(is_chat: bool) -> None:
    """One that comes before the stream has begun is behind the chunk of the role, or before the first text."""
    name = "chat.completion.chunk" if is_chat else "text_completion"
    first, last = (f'data: {{"object":"{name}","model":"m","number":{number}}}\n\n' for number in (1, 2))

    async def body() -> AsyncIterator[str]:
        current = report.collector.get()
        assert current is not None and current.show_block is not None
        await current.show_block(0, "early", {"step": 1})
        yield first
        await current.show_block(1, "late", {"step": 2})
        yield last
        yield "data: [DONE]\n\n"

    response = StreamingResponse(body(), media_type="text/event-stream")
    told = Server(response).client().post(CHAT, json={"stream": True}).text.split("\n\n")[:-1]
    events = [json.loads(part.removeprefix("data: ")) for part in told[:-1]]
    assert told[-1] == "data: [DONE]"
    order = [event.get("number") or event["id"] for event in events]
    assert order == ([1, "early", "late", 2] if is_chat else ["early", 1, "late", 2])
    shown = next(event for event in events if event.get("id") == "late")
    assert shown["dlm_denoising"] == {"step": 2}
    assert (shown["object"], shown["model"], shown["choices"][0]["index"]) == (name, "m", 1)


def test_generate_gets_no_events_of_ours() -> None:
    async def body() -> AsyncIterator[str]:
        current = report.collector.get()
        assert current is not None and current.show_block is None
        yield "data: [DONE]\n\n"

    response = StreamingResponse(body(), media_type="text/event-stream")
    assert Server(response).client().post("/generate", json={"text": "a"}).status_code == 200


def test_text_that_looks_like_a_finish_reason_is_not_one() -> None:
    events = [event(0, None, '"finish_reason":"stop"'), "data: [DONE]\n\n"]
    told = stream(events, [{"index": 0, "meta_info": {"dlm": STATS}}])
    assert told[0] + "\n\n" == events[0]


def test_several_events_in_one_piece_are_told_apart() -> None:
    told = stream([event(0, None) + event(0, "stop") + "data: [DONE]\n\n"], [{"index": 0, "meta_info": {"dlm": STATS}}])
    assert "dlm" not in told[0]
    assert json.loads(told[1].removeprefix("data: "))["dlm"] == STATS
    assert told[2:] == ["data: [DONE]", ""]


def test_requests_at_a_time_do_not_mix_their_statistics() -> None:
    async def handle(scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        await asyncio.sleep(0.01 * (5 - body["seed"]))
        report.record_output({"meta_info": {"dlm": {"num_forwards": body["seed"]}}})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"x":1}'})

    async def ask(seed: int) -> dict[str, Any]:
        pieces: list[bytes] = []
        receive = receiver([json.dumps({"seed": seed}).encode()])

        async def send(message: MutableMapping[str, Any]) -> None:
            pieces.append(message.get("body", b""))

        await DlmMiddleware(handle, lambda: FRONT)(http_scope(), receive, send)
        told = json.loads(b"".join(pieces))
        assert isinstance(told, dict)
        return told

    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(*(ask(seed) for seed in range(5)))

    assert [told["dlm"]["num_forwards"] for told in asyncio.run(all_of_them())] == list(range(5))


def http_scope() -> dict[str, object]:
    return {"type": "http", "method": "POST", "path": CHAT, "root_path": "", "headers": []}


def receiver(parts: list[bytes]) -> Any:
    messages: list[dict[str, object]] = [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]

    async def receive() -> dict[str, object]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    return receive


def test_a_body_in_pieces_is_read_whole_and_a_disconnect_comes_after_it() -> None:
    seen: list[Any] = []

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])

    async def send(message: Any) -> None:
        pytest.fail("nothing was answered")

    parts = [b'{"block_', b'length"', b": 8}"]
    asyncio.run(DlmMiddleware(handle, lambda: FRONT)(http_scope(), receiver(parts), send))
    assert json.loads(seen[0]["body"])["custom_params"]["dlm"]["block_length"] == 8
    assert seen[0]["more_body"] is False
    assert seen[1] == {"type": "http.disconnect"}


def test_a_client_that_leaves_while_sending_is_not_answered() -> None:
    async def handle(scope: Any, receive: Any, send: Any) -> None:
        pytest.fail("the route was called")

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pytest.fail("nobody is there")

    asyncio.run(DlmMiddleware(handle, lambda: FRONT)(http_scope(), receive, send))


def test_a_stream_is_passed_on_piece_by_piece() -> None:
    order: list[str] = []

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(3):
            order.append(f"made {number}")
            await send({"type": "http.response.body", "body": event(0, None).encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: MutableMapping[str, Any]) -> None:
        order.append(str(message["type"]))

    asyncio.run(DlmMiddleware(handle, lambda: FRONT)(http_scope(), receiver([b"{}"]), send))
    body = "http.response.body"
    assert order == ["http.response.start", "made 0", body, "made 1", body, "made 2", body, body]


def test_websockets_and_lifespan_pass() -> None:
    seen: list[str] = []

    async def handle(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(message: Any = None) -> Any:
        return {}

    for kind in ("lifespan", "websocket"):
        asyncio.run(DlmMiddleware(handle, lambda: FRONT)({"type": kind}, nothing, nothing))
    assert seen == ["lifespan", "websocket"]
