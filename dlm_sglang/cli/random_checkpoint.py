"""`dlm-sglang random-checkpoint`: a checkpoint of a published shape with random weights, for timing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_sglang.measure.plan.shape import PUBLISHED

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "random-checkpoint",
        help="write a checkpoint of a published shape with random weights",
        description="Write a checkpoint in the published format whose weights are random: whole rounds take as long "
        "as with real ones, answers are noise. `make bench-engine ARGS='--model-path FOLDER'` times it.",
    )
    parser.add_argument("--size", choices=list(PUBLISHED), default="nld-8b", help="default: nld-8b")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    parser.add_argument("--layers", type=int, metavar="N", help="fewer layers than the shape has")
    parser.add_argument("--no-drafter", action="store_true", help="leave the drafter adapter out")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; default: 0")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Write the checkpoint and print where it is."""
    # Only this command needs torch.
    from dlm_sglang.measure.random_checkpoint import write_random_checkpoint

    folder = write_random_checkpoint(
        arguments.out,
        arguments.size,
        num_layers=arguments.layers,
        has_drafter=not arguments.no_drafter,
        seed=arguments.seed,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(json.dumps({"folder": str(folder), "size": arguments.size}) if arguments.json else folder)
    return 0
