"""`dlm-sglang params`: the reference of request parameters and server settings, from their tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlm_sglang.api import fields, metric_table
from dlm_sglang.cli import reference

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "params",
        help="print the reference of request parameters and server settings",
        description="Print the reference of request parameters and server settings.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as the page docs/parameters.md (default)")
    form.add_argument("--metrics", action="store_true", help="the page docs/metrics.md instead")
    form.add_argument("--fields", action="store_true", help="the page docs/fields.md instead")
    form.add_argument("--json", action="store_true", help="as JSON schemas of the request fields and of the YAML file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Print the reference."""
    if arguments.metrics or arguments.fields:
        print((metric_table if arguments.metrics else fields).markdown(), end="")
        return 0
    schemas = {"request": reference.request_schema(), "settings": reference.settings_schema()}
    print(json.dumps(schemas, indent=2) if arguments.json else reference.markdown(), end="\n" if arguments.json else "")
    return 0
