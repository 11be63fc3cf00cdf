"""Run the cells of a sweep one by one, write each down, and tell how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dlm_sglang.measure.client import RequestRefused, ServerGone
from dlm_sglang.measure.store import Line, Store

Say = Callable[[str], None]
Key = Mapping[str, object]


@dataclass(frozen=True)
class Cell:
    """One measurement to make.

    Attributes:
        key: identifies it in the results file; `repetition` among others.
        measure: makes it; what it returns is written beside the key.
        told: the words for it in the progress line.
    """

    key: Key
    told: str
    measure: Callable[[], Mapping[str, object]]


def run_sweep(cells: Sequence[Cell], store: Store, say: Say, summary_of: Callable[[Line], str]) -> None:
    """Measure what the store does not hold yet.

    A setting that the server refuses is written down as refused, and the sweep goes on.

    Raises:
        ServerGone: the server stopped answering; what was finished is in the store.
    """
    todo = [cell for cell in cells if not store.has(cell.key)]
    if len(todo) < len(cells):
        say(f"{len(cells) - len(todo)} of {len(cells)} measurements are in {store.path} already")
    begun = time.monotonic()
    for number, cell in enumerate(todo, start=1):
        try:
            line = store.add(cell.key, **cell.measure())
            told = summary_of(line)
        except RequestRefused as error:
            store.add(cell.key, refused=error.message)
            told = f"refused: {error.message}"
        except ServerGone as error:
            raise ServerGone(
                f"{error.message}, during: {cell.told}",
                hint=f"{len(store.lines)} finished measurements are in {store.path}; start the server again and "
                "repeat the command with --resume",
            ) from None
        left_s = (time.monotonic() - begun) / number * (len(todo) - number)
        say(f"[{number}/{len(todo)}] {cell.told}: {told}{_left(left_s)}")


def interleaved(groups: Sequence[Sequence[Cell]]) -> list[Cell]:
    """Cells of all repetitions; every other repetition backwards, so that a drift of the machine favours nobody."""
    ordered: list[Cell] = []
    for repetition, group in enumerate(groups):
        ordered += group if repetition % 2 == 0 else group[::-1]
    return ordered


def _left(seconds: float) -> str:
    if seconds < 1:
        return ""
    return f" ({seconds:.0f} s left)" if seconds < 120 else f" ({seconds / 60:.0f} min left)"
