"""Two tensor-parallel ranks give the tokens of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.asks import AUTO, Ask, ask_all, diffusion
from tests.e2e.oracle import Oracle
from tests.e2e.server import start_server
from tests.e2e.test_pressure import KINDS


@pytest.mark.slow
def test_two_ranks_give_the_oracles_tokens_in_every_mode(
    checkpoint: Path, tmp_path: Path, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    asks = [
        Ask(prompt_ids=prompts[number], policy=policy, max_new_tokens=24)
        for number in range(3)
        for policy in KINDS.values()
    ]
    asks += [replace(one, temperature=0.8, seed=number) for number, one in enumerate(asks[:4])]
    # Ranks whose clocks chose for themselves would run different rounds, and hang.
    asks += [Ask(prompt_ids=prompts[number], policy=AUTO, max_new_tokens=150, ignore_eos=True) for number in range(6)]
    hurried = [
        Ask(
            prompt_ids=prompts[number],
            policy=replace(diffusion(16, 16, 1.0), latency_budget_ms=300 * number + 1),
            max_new_tokens=64,
            ignore_eos=True,
        )
        for number in range(3)
    ]
    server = start_server(
        checkpoint,
        tmp_path / "server.log",
        ["--tp-size", "2", "--max-total-tokens", "4000"],
        {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"},
    )
    try:
        # Without a seed the ranks must draw the same numbers all the same, or they part ways for good.
        unseeded = [replace(one, temperature=2.0, max_new_tokens=12) for one in asks[:8]]
        assert {one.seed for one in unseeded} == {None}
        unchecked = [*unseeded, *hurried]
        answers = ask_all(server.url, [*unchecked, *asks], concurrency=8)[len(unchecked) :]
        assert not (wrong := oracle.mismatches(asks, answers)), "\n".join(wrong)
        assert server.alarms() == []
    finally:
        server.stop()
