"""Rows of an eval as a table for a person and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from dlm_sglang.measure.quality import QualityRow, Recommendation, area, pareto

HEAD = ("setting", "accuracy", "95 % interval", "loss", "loss at most", "TPF", "TPF denoise", "accepted", "tok/s")


def as_table(rows: Sequence[QualityRow]) -> tuple[list[str], list[list[str]]]:
    """Head and lines; a star marks the settings that no other one beats."""
    best = {row.setting for row in pareto(rows)}
    lines = []
    for row in rows:
        loss = (
            ["-", "-"]
            if row is rows[0]
            else [_loss(row), "0" if row.same_answers and row.mode != "diffusion" else f"{row.loss_high:.1%}"]
        )
        numbers = [_number(row, name, form) for name, form in _NUMBERS]
        interval = f"{row.low:.3f} - {row.high:.3f}"
        lines.append(
            [f"{row.setting}{' *' if row.setting in best else ''}", f"{row.accuracy:.3f}", interval, *loss, *numbers]
        )
    return list(HEAD), lines


def areas(rows: Sequence[QualityRow]) -> dict[str, float]:
    """Area under the accuracy-parallelism curve, by mode."""
    return {mode: area(rows, mode) for mode in dict.fromkeys(row.mode for row in rows)}


def as_json(rows: Sequence[QualityRow], recommendation: Recommendation, warnings: Sequence[str]) -> dict[str, object]:
    """Everything that the table, the notes below it and the plot show."""
    return {
        "rows": [{**asdict(row), "mode": row.mode} for row in rows],
        "pareto": [row.setting for row in pareto(rows)],
        "area": areas(rows),
        "recommendation": {
            "setting": recommendation.row.setting,
            "fields": recommendation.row.fields,
            "reason": recommendation.reason,
        },
        "warnings": list(warnings),
    }


_NUMBERS = (("tpf", ".2f"), ("tpf_denoise", ".2f"), ("accept_length", ".2f"), ("tok_s", ".0f"))


def _loss(row: QualityRow) -> str:
    return "same answers" if row.same_answers else f"{row.loss:.1%}"


def _number(row: QualityRow, name: str, form: str) -> str:
    value = row.numbers.get(name)
    return "-" if value is None else format(value, form)
