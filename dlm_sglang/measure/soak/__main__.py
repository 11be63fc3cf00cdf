"""`python -m dlm_sglang.measure.soak`: soak a server of our own and write what was seen; exit status 0 or 1."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dlm_sglang.bundled.tasks import held_out_prompts
from dlm_sglang.measure.modes import machine
from dlm_sglang.measure.server import running_server
from dlm_sglang.measure.soak.memory import trend
from dlm_sglang.measure.soak.run import Outcome, soak
from dlm_sglang.setting_table import BUNDLED_PATH

NUM_PROMPTS = 64
FLAGS = (
    *("--model-path", str(BUNDLED_PATH), "--speculative-algorithm", "DLM", "--dtype", "float32", "--device", "cpu"),
    # Few places and a small pool that more are let into than fit: requests wait, and some are put back.
    *("--max-running-requests", "16", "--max-total-tokens", "1000"),
    *("--schedule-conservativeness", "0.05", "--enable-metrics"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one soak and return an exit status."""
    parser = argparse.ArgumentParser(prog="python -m dlm_sglang.measure.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args(argv)
    # Small model: a second thread mostly waits for the first.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # SGLang counts every KV slot after every round, and stops at the first one that is lost.
    os.environ.setdefault("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
    # It lets requests in as if they ended soon, so that the pool is too small for some of them later.
    os.environ.setdefault("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "32")
    prompts = [messages for _, messages, _ in held_out_prompts(NUM_PROMPTS)]
    with running_server(FLAGS, "soak") as url:
        outcome = asyncio.run(
            soak(
                url,
                os.getpid(),
                prompts,
                seconds=60 * arguments.minutes,
                clients=arguments.clients,
                seed=arguments.seed,
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
        )
    told = result(outcome)
    print(json.dumps({name: value for name, value in told.items() if name != "samples"}, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 1 if told["problems"] else 0


def result(outcome: Outcome) -> dict[str, object]:
    """What is kept of a soak."""
    line = trend(outcome.samples)
    problems = outcome.problems()
    if not outcome.retracted:
        problems.append("no request was put back for want of KV slots, so the load was not what it is meant to be")
    return {
        "command": f"make soak ARGS='--minutes {outcome.seconds / 60:g} --clients {outcome.clients}'",
        **machine(),
        **{name: value for name, value in asdict(outcome).items() if name != "samples"},
        "memory": {**asdict(line), "is_flat": line.is_flat},
        "problems": problems,
        "samples": [[round(one.time_s, 1), round(one.rss_mib, 2)] for one in outcome.samples],
    }


if __name__ == "__main__":
    sys.exit(main())
