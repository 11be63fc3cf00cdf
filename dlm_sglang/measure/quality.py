"""Accuracy beside tokens per forward: rows, the area under their frontier, traps, and one recommendation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.metrics import paired_loss, wilson
from dlm_sglang.measure.store import Line, numbers_of

BASELINE_MODE = "autoregressive"
# Settings that lose more than this are no use to anybody: the area does not count them.
AREA_FLOOR = 0.10
_MOST_NAMED = 2


@dataclass(frozen=True)
class QualityRow:
    """One setting on all prompts.

    Attributes:
        hits: right or wrong, prompt by prompt.
        low: lower end of the accuracy's 95 % interval.
        loss: baseline's accuracy less this one's, on the same prompts; negative where this one is better.
        loss_high: upper end of the loss's 95 % interval.
        same_answers: every answer is the baseline's.
    """

    setting: str
    fields: Mapping[str, object]
    hits: str
    accuracy: float
    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float
    same_answers: bool
    numbers: Mapping[str, float | None]
    by_task: Mapping[str, float]

    @property
    def mode(self) -> str:
        return str(self.fields.get("generation_mode", "server default"))

    @property
    def tpf(self) -> float:
        """Tokens per forward; 1 where the server does not report it."""
        return self.numbers.get("tpf") or 1.0


@dataclass(frozen=True)
class Recommendation:
    """The fastest setting within the loss that was stated, and why."""

    row: QualityRow
    reason: str


def quality_rows(lines: Sequence[Line]) -> list[QualityRow]:
    """Rows of a table, the baseline first.

    Raises:
        SettingsError: the baseline is missing: nothing can be said about losses.
    """
    measured = [line for line in lines if "hits" in line]
    baselines = [line for line in measured if _fields(line).get("generation_mode") == BASELINE_MODE]
    if not baselines:
        raise SettingsError(
            f"no measurement of {BASELINE_MODE} mode to compare with",
            code="baseline-missing",
            hint=f"add {BASELINE_MODE} to --modes",
        )
    return [_row(line, baselines[0]) for line in [baselines[0], *(line for line in measured if line != baselines[0])]]


def area(rows: Sequence[QualityRow], mode: str, floor: float = AREA_FLOOR) -> float:
    """Area under the accuracy-parallelism curve of a mode: tokens per forward, weighted by quality.

    The curve at p tokens per forward is the best accuracy, relative to the baseline's, among the mode's
    settings that reach at least p; it is 0 beyond the last one. Settings that lose more than `floor` are
    left out. AR scores 1, and a mode that loses nothing scores its tokens per forward.
    """
    reference = rows[0].accuracy
    own = sorted((row for row in rows if row.mode == mode and row.loss <= floor), key=lambda row: -row.tpf)
    total, best, right_edge = 0.0, 0.0, None
    for row in own:
        if right_edge is not None:
            total += best * (right_edge - row.tpf)
        best = max(best, min(1.0, row.accuracy / reference) if reference else 0.0)
        right_edge = row.tpf
    return total + best * (right_edge or 0.0)


def pareto(rows: Sequence[QualityRow]) -> list[QualityRow]:
    """Settings that no other one beats in both accuracy and tokens per forward, slowest first."""
    ordered = sorted(rows, key=lambda row: (-row.tpf, -row.accuracy))
    kept: list[QualityRow] = []
    for row in ordered:
        if not kept or row.accuracy > kept[-1].accuracy:
            kept.append(row)
    return kept[::-1]


def recommend(rows: Sequence[QualityRow], max_loss: float, objective: str = "tpf") -> Recommendation:
    """The fastest setting whose loss is, with 95 % confidence, at most `max_loss`.

    Self-speculation and `auto` that give the baseline's very answers lose nothing, however few the prompts are: they
    are exact by construction. Other modes prove no more than their interval says.
    """
    allowed = [row for row in rows if _is_exact(row) or row.loss_high <= max_loss]

    def speed(row: QualityRow) -> float:
        return row.numbers.get(objective) or 0.0

    # Settings equally fast within 1 % are equal: the one that loses less is the better choice.
    fastest = max(speed(row) for row in allowed)
    best = min((row for row in allowed if speed(row) >= 0.99 * fastest), key=lambda row: row.loss)
    unit = "tokens per forward" if objective == "tpf" else "tok/s"
    if best.same_answers:
        why = "its answers are the baseline's, all of them"
    else:
        why = f"it loses {best.loss:.1%} (95 % interval {best.loss_low:.1%} to {best.loss_high:.1%})"
    return Recommendation(
        best, f"{speed(best):.2f} {unit}; {why}; of {len(rows)} settings {len(allowed)} are within {max_loss:.1%}"
    )


def traps(fields: Mapping[str, object], trained_block_length: int | None, tpf: float | None = None) -> list[str]:
    """What makes a setting's numbers misleading, in words."""
    if fields.get("generation_mode") == BASELINE_MODE or not fields:
        return []
    found = []
    block, steps = fields.get("block_length"), fields.get("max_denoising_steps")
    is_diffusion = fields.get("generation_mode") == "diffusion"
    if is_diffusion and "confidence_threshold" not in fields:
        found.append(
            "no confidence_threshold: the server's default applies, and servers differ in it; name it, or null"
        )
    spreads = is_diffusion and fields.get("confidence_threshold", "") is None
    if spreads and (steps is None or (isinstance(block, int) and isinstance(steps, int) and steps >= block - 1)):
        found.append("this schedule reveals one token per forward: as slow as AR, with a commit forward on top")
    elif is_diffusion and tpf is not None and tpf < 1.05:
        found.append(f"{tpf:.2f} tokens per forward: no faster than AR")
    if trained_block_length is not None and isinstance(block, int) and block != trained_block_length:
        found.append(f"block_length {block}; the checkpoint's own is {trained_block_length}")
    return found


def warnings(rows: Sequence[QualityRow], trained_block_length: int | None) -> list[str]:
    """Every trap once, with the settings that are in it."""
    settings: dict[str, list[str]] = {}
    for row in rows:
        for trap in traps(row.fields, trained_block_length, row.numbers.get("tpf")):
            settings.setdefault(trap, []).append(row.setting)
    return [
        f"{', '.join(own) if len(own) <= _MOST_NAMED else f'{len(own)} settings'}: {trap}"
        for trap, own in settings.items()
    ]


def _is_exact(row: QualityRow) -> bool:
    return row.same_answers and row.mode in (BASELINE_MODE, "self_speculation", "auto")


def _row(line: Line, baseline: Line) -> QualityRow:
    hits, reference = str(line["hits"]), str(baseline["hits"])
    if len(hits) != len(reference):
        raise SettingsError(
            f"{len(hits)} prompts in one setting and {len(reference)} in the baseline", code="runs-differ"
        )
    pairs = list(zip(reference, hits, strict=True))
    loss, low, high = paired_loss(pairs.count(("1", "0")), pairs.count(("0", "1")), len(pairs))
    by_task = line.get("by_task")
    key = line["key"]
    assert isinstance(key, dict)
    right = hits.count("1")
    return QualityRow(
        setting=str(key["setting"]),
        fields=_fields(line),
        hits=hits,
        accuracy=right / len(hits),
        low=wilson(right, len(hits))[0],
        high=wilson(right, len(hits))[1],
        loss=loss,
        loss_low=low,
        loss_high=high,
        same_answers=line.get("answers") == baseline.get("answers") is not None,
        numbers=numbers_of(line),
        by_task=by_task if isinstance(by_task, dict) else {},
    )


def _fields(line: Line) -> Mapping[str, object]:
    fields = line.get("fields")
    return fields if isinstance(fields, dict) else {}
