"""Rounds as a GPU runs them, on the CPU: overlapped, padded to buckets, with every host read recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.asks import Ask, ask_all, shuffled
from tests.e2e.blocks import BLOCKLESS, check_blocks, seen_all, with_blocks
from tests.e2e.conftest import OVERLAPPED, SERVER_FLAGS, running
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server

PADDED = {"DLM_PAD_ROUNDS": "on", "DLM_MAX_PADDED_TOKENS": "256"}


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "rounds.jsonl"


@pytest.fixture(scope="module")
def device_like_server(
    checkpoint: Path, trace_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    traced = {"DLM_ROUND_TRACE": str(trace_file), "DLM_ROUND_TRACE_READS": "on"}
    flags = (*SERVER_FLAGS, "--max-running-requests", "16")
    with running(checkpoint, tmp_path_factory, "device-like-server", flags, OVERLAPPED, PADDED, traced) as server:
        yield server


def test_padded_overlapped_rounds_give_the_oracles_tokens_without_a_host_read(
    device_like_server: Server, oracle: Oracle, mixed_asks: list[Ask], trace_file: Path
) -> None:
    asks = shuffled(mixed_asks, seed=21)[:48]
    answers = ask_all(device_like_server.url, asks, concurrency=16)
    assert not (wrong := oracle.mismatches(asks, answers)), "\n".join(wrong)
    watched = [one for one in asks if one.policy.mode not in BLOCKLESS][:16]
    streams = seen_all(device_like_server.url, [with_blocks(one) for one in watched], concurrency=16)
    assert all(check_blocks(stream.blocks, one, oracle) for one, stream in zip(watched, streams, strict=True))
    assert device_like_server.alarms() == []
    assert "decode rounds prepared for" in device_like_server.log
    # The record is written when the scheduler pauses, so at the latest before the next request runs.
    device_like_server.wait_idle()
    ask_all(device_like_server.url, asks[:1], concurrency=1)
    records = [json.loads(line) for line in trace_file.read_text().splitlines()]
    decodes = [record for record in records if record["kind"] == "decode"]
    assert len(decodes) > 20
    assert max(record["rows"] for record in decodes) > 8
    reads = Counter(place for record in decodes for place in record["host_reads"])
    assert reads == Counter(), "a decode round waits for the device here"
