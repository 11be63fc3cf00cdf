"""The short form of `make soak`: mixed modes with aborts, and nothing changes, is lost or left."""

from __future__ import annotations

import asyncio

from dlm_sglang.bundled.tasks import held_out_prompts
from dlm_sglang.measure.soak.run import soak
from dlm_sglang.param_table import GenerationMode
from tests.e2e.server import Server

SECONDS = 20.0


def test_a_short_soak_changes_no_answer_and_leaves_nothing_behind(front_server: Server) -> None:
    prompts = [messages for _, messages, _ in held_out_prompts(32)]
    outcome = asyncio.run(
        soak(
            front_server.url,
            front_server.process.pid,
            prompts,
            seconds=SECONDS,
            clients=24,
            num_samples=40,
            num_probes=2,
        )
    )
    # So short, memory only warms up: that it does not grow is for the long form to show.
    assert [line for line in outcome.problems() if not line.startswith("memory grows")] == []
    assert outcome.probes >= 3
    assert outcome.tokens > 0
    assert {*GenerationMode, "aborted", "refused"} <= set(outcome.counts)
    assert len(outcome.samples) > 10
