"""Flags that `bench` and `eval` share: the server, the settings to sweep, the files to write."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_sglang.param_table import GenerationMode

if TYPE_CHECKING:
    from dlm_sglang.measure.grid import DecodeSetting

API_KEY_VARIABLE = "DLM_API_KEY"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What to sweep."""
    group = parser.add_argument_group("settings to sweep")
    group.add_argument(
        "--modes",
        nargs="+",
        default=list(GenerationMode),
        metavar="MODE",
        help="generation modes; none sends no field of ours, for other servers (default: all)",
    )
    group.add_argument("--block-lengths", type=int, nargs="+", default=[], metavar="N", help="default: the server's")
    group.add_argument(
        "--steps", type=int, nargs="+", default=[], metavar="N", help="diffusion: steps per block, masks spread evenly"
    )
    group.add_argument(
        "--thresholds", nargs="+", default=[], metavar="X", help="diffusion: confidence thresholds, or null"
    )
    group.add_argument(
        "--cross", action="store_true", help="combine --steps with --thresholds, not one after the other"
    )
    group.add_argument(
        "--draft-thresholds", type=float, nargs="+", default=[], metavar="X", help="self-speculation: draft thresholds"
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="X")


def add_files(parser: argparse.ArgumentParser) -> None:
    """Where results go."""
    group = parser.add_argument_group("results")
    group.add_argument("--resume", action="store_true", help="continue the results file: measure what it lacks")
    group.add_argument("--plots", type=Path, metavar="DIR", help="write PNG plots into this folder")
    group.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained HTML report")


def settings_of(arguments: argparse.Namespace) -> list[DecodeSetting]:
    """The settings that the flags describe."""
    from dlm_sglang.measure.grid import make_grid

    return make_grid(
        arguments.modes,
        arguments.block_lengths,
        arguments.steps,
        arguments.thresholds,
        arguments.draft_thresholds,
        cross=arguments.cross,
    )


def api_key() -> str | None:
    """The key that the server asks for, from its variable: a flag would show it in the process list."""
    return os.environ.get(API_KEY_VARIABLE) or None
