"""Command line: many requests under JSON schemas to a running server, or to one of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

from dlm_sglang.measure.json_schemas.drive import FLAGS, MODES, Outcome, drive, probes
from dlm_sglang.measure.json_schemas.schemas import SCHEMAS
from dlm_sglang.measure.modes import SERVER_FLAGS, command_of, machine
from dlm_sglang.measure.server import running_server
from dlm_sglang.setting_table import BUNDLED_PATH


def main() -> int:
    """Exit status 0 if every answer follows its schema, else 1."""
    parser = argparse.ArgumentParser(prog="python -m dlm_sglang.measure.json_schemas", description=__doc__)
    url_help = f"of a running server, started with {' '.join(FLAGS)}; default: one of the bundled checkpoint is started"
    parser.add_argument("--url", help=url_help)
    parser.add_argument("--model", default="default", help="the name that the server serves")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        url = arguments.url or stack.enter_context(running_server(_flags(), "json-schemas"))
        asked = probes(arguments.requests)
        outcomes = asyncio.run(drive(url.rstrip("/"), arguments.model, asked, arguments.concurrency, _say))
    for mode, outcome in outcomes.items():
        print(f"{mode:<18} valid {outcome.valid:>5}  wrong {len(outcome.wrong):>4}  of them cut {outcome.cut:>4}")
    if arguments.out:
        arguments.out.write_text(json.dumps(_report(outcomes, time.monotonic() - begin), indent=1) + "\n")
    return 1 if any(outcome.wrong for outcome in outcomes.values()) else 0


def _flags() -> list[str]:
    return ["--model-path", str(BUNDLED_PATH), *SERVER_FLAGS, "--speculative-algorithm", "DLM", *FLAGS]


def _report(outcomes: dict[str, Outcome], duration_s: float) -> dict[str, object]:
    rows = {mode: {"valid": one.valid, "cut": one.cut, "wrong": one.wrong} for mode, one in outcomes.items()}
    told = {
        "command": command_of("dlm_sglang.measure.json_schemas"),
        **machine(),
        "duration_s": round(duration_s, 1),
    }
    return {**told, "schemas": list(SCHEMAS), "modes": list(MODES), "outcomes": rows}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
