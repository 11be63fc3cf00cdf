"""`dlm-sglang bench`: the modes beside plain SGLang on this machine, in one run."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_sglang.setting_table import BUNDLED_PATH

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "bench",
        help="measure the modes beside plain SGLang on this machine",
        description="Start plain SGLang and our server on the same weights, load both in turn, print tokens/s and "
        "ratios: our AR over plain SGLang's (fixed lengths), each mode over our AR (natural answers).",
    )
    parser.add_argument("--model-path", type=Path, default=BUNDLED_PATH, help="checkpoint (default: the bundled one)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--requests", type=int, default=24, help="per run, at least twice the concurrency")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frontend", action="store_true", help="measure what our HTTP layer adds to a request instead")
    parser.add_argument("--rounds", type=int, default=300, help="with --frontend: requests of each kind to each server")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Measure and print."""
    # Only this command needs an HTTP client and the task prompts.
    from dlm_sglang.measure import frontend, modes

    out = sys.stderr if arguments.json else sys.stdout

    def say(line: str) -> None:
        print(line, file=out, flush=True)

    command = shlex.join(["dlm-sglang", *sys.argv[1:]])
    if arguments.frontend:
        rows = frontend.measure(arguments.model_path, arguments.rounds, say)
        if arguments.out is not None:
            frontend.write_report(arguments.out, rows, command)
        return 0
    say(modes.header())
    cells = modes.compare_modes(arguments.model_path, arguments.concurrency, arguments.requests, arguments.repeats, say)
    if arguments.out is not None:
        modes.write_report(arguments.out, cells, command)
    if arguments.json:
        print(json.dumps(modes.report(cells, command)))
    return 0
