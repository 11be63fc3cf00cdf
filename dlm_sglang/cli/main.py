"""`dlm-sglang COMMAND`: data on stdout, the rest on stderr; exit status 0, 1 (failed) or 2 (usage)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dlm_sglang.cli import bench, eval, params, plan, random_checkpoint, serve
from dlm_sglang.errors import DlmError

COMMANDS = (serve, plan, bench, eval, params, random_checkpoint)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="dlm-sglang", description="Serve diffusion language models with SGLang.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    own, extra = _split(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(own)
    try:
        status: int = arguments.run(arguments, extra)
    except DlmError as error:
        print_error(error)
        return error.exit_status
    return status


def print_error(error: DlmError) -> None:
    """Print an error as every command does: what, an empty line, the way out."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"\nhint: {error.hint}", file=sys.stderr)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before and after a lone `--`."""
    if "--" not in argv:
        return list(argv), []
    cut = list(argv).index("--")
    return list(argv[:cut]), list(argv[cut + 1 :])


if __name__ == "__main__":
    sys.exit(main())
