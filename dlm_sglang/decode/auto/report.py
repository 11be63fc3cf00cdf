"""What a response tells of the choices that were made for it."""

from __future__ import annotations

from collections.abc import Mapping

from dlm_sglang.decode.auto.controller import AutoController
from dlm_sglang.decode.auto.row import AutoRow

Report = dict[str, "str | int | Mapping[str, int] | Mapping[str, float]"]


def report_of(row: AutoRow, controller: AutoController) -> Report:
    """Block lengths that were used, why the last one was chosen, and the numbers behind it.

    `blocks` counts verified blocks by length, a token decoded alone as a block of 1. `tok_s` and `round_ms` are what
    the last decision about the batch expected with all its requests at that length; `accept_length` is what a block of
    this request was last expected to win.
    """
    report: Report = {
        "blocks": {str(length): count for length, count in sorted(row.blocks.items())},
        "reason": row.reason,
    }
    expected = controller.expectation
    if expected is None:
        return report
    factor = row.frailty.factor
    return report | {
        "requests": expected.num_rows,
        "tok_s": {str(length): round(rate, 1) for length, rate in expected.tok_s.items()},
        "round_ms": {str(length): round(1e3 * seconds, 3) for length, seconds in expected.round_s.items()},
        "accept_length": {
            str(length): round(controller.curve.accept_length(length, factor), 2) for length in row.lengths[1:]
        },
    }
