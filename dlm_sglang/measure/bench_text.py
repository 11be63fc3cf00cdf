"""Rows of a bench as a table for a person and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_sglang.measure.bench import Row

COLUMNS = (
    ("tok/s", "tok_s", ".0f"),
    ("tok/s a user", "user_tok_s", ".0f"),
    ("TTFT ms", "ttft_ms_p50", ".0f"),
    ("chunk gap ms", "chunk_gap_ms_p50", ".1f"),
    ("ms/token", "token_gap_ms_p50", ".2f"),
    ("TPF", "tpf", ".2f"),
    ("TPF denoise", "tpf_denoise", ".2f"),
    ("accepted", "accept_length", ".2f"),
    ("forwards/block", "forwards_per_block", ".2f"),
)
GOODPUT_COLUMNS = (("good/s", "goodput_s", ".2f"), ("good", "good_share", ".0%"))


def columns_of(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The columns that have a number in some row."""
    return [column for column in (*COLUMNS, *GOODPUT_COLUMNS) if any(column[1] in row.numbers for row in rows)]


def as_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines; after tok/s stands half the spread of the repetitions, in percent."""
    columns = columns_of(rows)
    lines = []
    for row in rows:
        cells = [row.setting, row.pattern.label]
        if row.refused:
            cells += [f"refused: {row.refused}"[:60], *([""] * (len(columns) - 1))]
        else:
            cells += [_cell(row, name, form) for _, name, form in columns]
        lines.append(cells)
    return ["setting", "load", *(head for head, _, _ in columns)], lines


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Every number with its spread."""
    return [
        {
            "setting": row.setting,
            "concurrency": row.pattern.concurrency,
            "rate_s": row.pattern.rate_s,
            "repetitions": row.repetitions,
            **({"refused": row.refused} if row.refused else {}),
            "numbers": {
                name: {"median": median, "min": low, "max": high} for name, (median, low, high) in row.numbers.items()
            },
        }
        for row in rows
    ]


def _cell(row: Row, name: str, form: str) -> str:
    if name not in row.numbers:
        return "-"
    median, low, high = row.numbers[name]
    text = format(median, form)
    if name == "tok_s" and row.repetitions > 1 and median > 0:
        text += f" ±{(high - low) / 2 / median:.0%}"
    return text
