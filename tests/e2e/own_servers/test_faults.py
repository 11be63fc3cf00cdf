"""Faults that a server lives through: clients of all kinds, a moving clock, a full pool; at the end it is told to go.

The table of all faults is in docs/faults.md.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.asks import AUTOREGRESSIVE, MODES, Ask, Policy, answered, async_client, diffusion, speculation
from tests.e2e.faults import (
    CHAT,
    JSON_HEADER,
    Clients,
    body,
    family_of,
    gone,
    received,
    send_raw,
    texts,
    with_moved_clock,
)
from tests.e2e.server import Server, serve_command, start_server

POOL_TOKENS = 3000
DRAIN_S = 4.0
# SGLang looks every 5 s whether it has drained, and then ends its processes.
MAX_AFTER_DRAIN_S = 25.0
NUM_CONNECTIONS = 10_000
NUM_ASKING = 1_000
ROUTES = (CHAT, "/v1/completions", "/generate")
DAY_S = 86_400
# Without a key, of one address; more than the other tests need.
MAX_OPEN = 20
# Another machine, as far as the server can tell; a proxy on its own machine would be 127.0.0.1.
ELSEWHERE = "127.0.0.2"


@pytest.fixture(scope="module")
def clock_and_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    folder = tmp_path_factory.mktemp("faults")
    clock, environment = with_moved_clock(folder)
    environment |= {"DLM_DRAIN_TIMEOUT_S": str(DRAIN_S), "DLM_MAX_CONCURRENT_REQUESTS_PER_KEY": str(MAX_OPEN)}
    environment |= {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}
    flags = ["--", "--max-total-tokens", str(POOL_TOKENS)]
    server = start_server(checkpoint, folder / "server.log", flags, environment, serve_command)
    try:
        yield clock, server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def victim(clock_and_server: tuple[Path, Server]) -> Server:
    return clock_and_server[1]


@pytest.fixture(scope="module")
def usual(victim: Server) -> list[str]:
    """What it answers while all is well."""
    return texts(victim)


@pytest.fixture(autouse=True)
def _lives_on(request: pytest.FixtureRequest, victim: Server, usual: list[str]) -> Iterator[None]:
    """After each fault every mode answers as before, nothing is held, and the log tells of no crash."""
    yield
    if "sigterm" not in request.node.name:
        victim.wait_idle()
        assert texts(victim) == usual
        assert victim.alarms() == []


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def test_clients_that_never_read_hold_nobody_up(victim: Server) -> None:
    payloads = [
        json.dumps(body(mode, 300, stream=True, number=number)).encode() for number in range(2) for mode in MODES
    ]
    silent = [send_raw(port_of(victim), payload) for payload in payloads]
    assert [victim.post(CHAT, body(mode, 8)).status_code for mode in MODES] == [200] * len(MODES)
    # Their answers are made, and their slots are free, though nobody took anything.
    victim.wait_idle()
    for connection in silent[:3]:
        connection.close()
    for connection in silent[3:]:
        status, rest = received(connection)
        assert status == 200
        assert b"data: [DONE]" in rest


def test_a_client_that_leaves_while_it_sends_is_forgotten(victim: Server) -> None:
    whole = json.dumps(body(MODES[0], 8)).encode()
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        with socket.create_connection(("127.0.0.1", port_of(victim))) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(whole)}\r\n".encode()
            connection.sendall(head + JSON_HEADER + b"\r\n" + whole[:kept])


def test_ten_thousand_connections_are_held_and_served(victim: Server) -> None:
    """As many as this machine's limit on open files allows, up to 10000."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(NUM_CONNECTIONS, hard - 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        statuses = asyncio.run(open_many(victim, number))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(f"{number} connections were open")
    assert statuses == [b"200"] * min(NUM_ASKING, number)


async def open_many(server: Server, number: int) -> list[bytes]:
    gate = asyncio.Semaphore(200)

    async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with gate:
            return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port_of(server)), 60)

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        async with gate:
            writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
            return (await asyncio.wait_for(reader.readline(), 60)).split()[1]

    connections = await asyncio.gather(*(opened() for _ in range(number)))
    try:
        async with async_client(server.url) as client:
            answers = [await client.post(CHAT, json=body(mode, 8)) for mode in MODES]
        assert [answer.status_code for answer in answers] == [200] * len(MODES)
        return list(await asyncio.gather(*(asked(*connection) for connection in connections[:NUM_ASKING])))
    finally:
        for _, writer in connections:
            writer.close()


FINE = json.dumps(body(MODES[0], 2)).encode()
MALFORMED: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", JSON_HEADER),
    "no JSON": (b"{nope", JSON_HEADER),
    "cut off": (FINE[:-5], JSON_HEADER),
    "a list": (b"[]", JSON_HEADER),
    "null": (b"null", JSON_HEADER),
    "a string": (b'"x"', JSON_HEADER),
    "no UTF-8": (b'{"prompt":"\xff\xfe"}', JSON_HEADER),
    "half a pair": (b'{"prompt":"\\ud800","text":"\\ud800"}', JSON_HEADER),
    "too deep": (b"[" * 100_000, JSON_HEADER),
    "too deep an object": (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, JSON_HEADER),
    "NaN": (FINE[:-1] + b', "top_p": NaN}', JSON_HEADER),
    "a number of 400 digits": (FINE[:-1] + b', "seed": ' + b"9" * 400 + b"}", JSON_HEADER),
    "infinity": (FINE[:-1] + b', "top_p": 1e999}', JSON_HEADER),
    "UTF-16": (FINE.decode().encode("utf-16"), JSON_HEADER),
    "a byte order mark": (b"\xef\xbb\xbf" + FINE, JSON_HEADER),
    "of no type": (b"{}", b""),
    "a form": (b"a=b", b"content-type: application/x-www-form-urlencoded\r\n"),
    "gzip cut off": (gzip.compress(FINE)[:-9], JSON_HEADER + b"content-encoding: gzip\r\n"),
}


@pytest.mark.parametrize("path", ROUTES)
def test_malformed_bodies_are_400_in_openais_shape(victim: Server, path: str) -> None:
    wrong = {}
    for name, (payload, headers) in MALFORMED.items():
        status, rest = received(send_raw(port_of(victim), payload, path, headers))
        told = json.loads(rest)["error"] if rest.startswith(b'{"error"') else None
        if status != 400 or told is None or set(told) != {"message", "type", "param", "code"}:
            wrong[name] = (status, rest[:200])
    assert wrong == {}


def test_what_is_no_http_is_answered_400_and_closed(victim: Server) -> None:
    for payload in (
        b"\x00\xff\x10garbage\r\n\r\n",
        b"POST /generate HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabcde",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port_of(victim)), timeout=30) as connection:
            connection.sendall(payload)
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_clock_that_jumps_changes_no_answer(
    clock_and_server: tuple[Path, Server], usual: list[str], jump_s: int
) -> None:
    clock, server = clock_and_server
    before = server.post(CHAT, body(MODES[0], 1)).json()["created"]
    clients = Clients(server, [(mode, 150) for mode in MODES])
    clock.write_text(str(jump_s))
    try:
        assert [(one.status, one.finish_reason) for one in clients.outcomes()] == [(200, "length")] * len(MODES)
        assert server.get("/health").status_code == 200
        after = server.post(CHAT, body(MODES[0], 1)).json()["created"]
        assert abs(after - before - jump_s) < DAY_S / 2
        assert texts(server) == usual
    finally:
        clock.write_text("0")


def test_a_client_cannot_pass_for_many_by_a_header(victim: Server) -> None:
    """As on Compose's network, where nobody asks from the server's own loopback: `X-Forwarded-For` is not believed."""

    async def statuses() -> list[int]:
        transport = httpx.AsyncHTTPTransport(local_address=ELSEWHERE, limits=httpx.Limits(max_connections=None))
        async with httpx.AsyncClient(base_url=victim.url, transport=transport, timeout=60) as client:
            gone_on = asyncio.Event()
            found: list[int] = []

            async def ask(number: int) -> None:
                headers = {"X-Forwarded-For": f"10.0.0.{number}", "X-Real-IP": f"10.0.0.{number}"}
                sent = body(MODES[0], 1000, stream=True, number=number)
                async with client.stream("POST", CHAT, json=sent, headers=headers) as response:
                    found.append(response.status_code)
                    await gone_on.wait()

            asks = [asyncio.create_task(ask(number)) for number in range(MAX_OPEN + 2)]
            while len(found) < len(asks) and not any(one.done() for one in asks):
                await asyncio.sleep(0.05)
                if found.count(429) == 2:
                    break
            gone_on.set()
            await asyncio.gather(*asks)
            return found

    found = asyncio.run(statuses())
    assert found.count(429) == 2
    assert set(found) == {200, 429}


POLICIES: tuple[Policy, ...] = (AUTOREGRESSIVE, speculation(32), speculation(5), diffusion(32, 32, 0.9))


def test_an_answer_longer_than_the_kv_pool_ends_at_its_end_in_every_mode(victim: Server) -> None:
    for policy in POLICIES:
        one = Ask(prompt_ids=(300,) * (POOL_TOKENS - 100), policy=policy, max_new_tokens=500, ignore_eos=True)
        reply = victim.post("/generate", one.body())
        assert reply.status_code == 200, reply.text
        meta = reply.json()["meta_info"]
        assert (meta["finish_reason"]["type"], meta["completion_tokens"]) == ("length", 98), policy


def test_a_prompt_longer_than_the_kv_pool_is_a_400(victim: Server) -> None:
    for policy in POLICIES:
        one = Ask(prompt_ids=(300,) * (POOL_TOKENS + 1), policy=policy, max_new_tokens=5)
        reply = victim.post("/generate", one.body())
        assert reply.status_code == 400
        assert str(POOL_TOKENS + 1) in reply.json()["error"]["message"]


def test_more_requests_than_the_kv_pool_holds_all_get_their_answers(victim: Server) -> None:
    asks = [
        Ask(
            prompt_ids=(300 + number,) * (POOL_TOKENS // 3),
            policy=POLICIES[number % 4],
            max_new_tokens=150,
            ignore_eos=True,
        )
        for number in range(8)
    ]

    async def all_at_once() -> list[int]:
        async with async_client(victim.url) as client:
            answers = await asyncio.gather(*(answered(client, one) for one in asks))
        return [answer.num_tokens for answer in answers]

    assert asyncio.run(all_at_once()) == [150] * len(asks)


def test_sigterm_under_load_ends_every_request_cleanly_within_the_limit(victim: Server) -> None:
    """Short requests get their whole answers, long ones end as aborted, new ones are refused; then it is gone."""
    family = family_of(victim)
    short = [(mode, 12) for mode in MODES]
    # All fit into the pool, so that nobody waits.
    long = [("autoregressive", 1250)] * 2
    clients = Clients(victim, [*short, *long])
    begin = time.monotonic()
    victim.process.send_signal(signal.SIGTERM)
    refused = until_refused(victim)
    assert refused.json()["error"]["code"] == "server-draining"
    assert int(refused.headers["retry-after"]) >= 1
    assert httpx.get(f"{victim.url}/ready").status_code == 503
    outcomes = clients.outcomes()
    assert [one for one in outcomes if one.is_lost or one.status != 200] == []
    assert [one.finish_reason for one in outcomes] == ["length"] * len(MODES) + ["abort"] * 2
    gone(victim, family, DRAIN_S + MAX_AFTER_DRAIN_S)
    assert victim.process.returncode == 0
    print(f"gone after {time.monotonic() - begin:.1f} s, of which {DRAIN_S} s to drain")


def until_refused(server: Server) -> httpx.Response:
    """The first answer that a new request gets once the server has taken the signal."""
    for _ in range(100):
        answer = server.post(CHAT, body(MODES[0], 1))
        if not answer.is_success:
            return answer
    raise AssertionError("the server takes new requests though it is about to end")
