"""How long a round takes: learnt from every round that ran, and a guess for those that did not.

Rounds of about the same shape share a cell, which keeps their mean. A line through all cells, bent upwards where
forwards stop being free, predicts shapes that never ran: non-negative least squares, with a weak prior of the
roofline's shape (performance: query tokens are free up to FLOP rate over bandwidth, about 206). By as much as the cells
around a shape are off the line, the shape is expected to be off it too: else one between two that are known to be slow
would look fast.

A machine may become slower or faster as a whole, as one that is shared or throttled does. That is told by the cells
that are known well, whichever runs, and kept apart as the pace: else the shapes that ran while it was slow would look
bad beside those that ran before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FREE_TOKENS = 206
# Where the slope over query tokens may rise.
_KNEES = (0.0, 64.0, FREE_TOKENS, 512.0, 1024.0)
_PRIOR_WEIGHT = 0.004
_MAX_CELL_WEIGHT = 32
_TRUSTED = 3
_OUTLIER = 2.0
_SHORTEST_S = 1e-6
# Rounds of a shape that the line through all of them is worth.
_DOUBT = 4.0
_SWEEPS = 40
# Cells that far away tell of a shape, each step the less.
_REACH, _PER_STEP = 2, 0.75
# While there are so few, each new cell changes the line much.
_FEW_CELLS = 12
# Rounds until a cell that nobody visits counts half.
_HALF_LIFE = 20_000.0
# Rounds until what was seen of a shape says half as much about whether it is known.
_KNOWN_HALF_LIFE = 4_000.0
# Share of a round's error that goes into the pace, if its cell has this weight.
_PACE_SHARE, _KNOWN_WELL = 0.2, 4


_NUM_FEATURES = 4 + len(_KNEES)


@dataclass(frozen=True)
class RoundShape:
    """What decides a round's time.

    Attributes:
        num_rows: requests.
        num_tokens: query tokens, padding included.
        num_kv_tokens: keys that the rows have in the cache, all together.
    """

    num_rows: int
    num_tokens: int
    num_kv_tokens: int

    @property
    def is_blockwise(self) -> bool:
        return self.num_tokens > self.num_rows

    def features(self) -> list[float]:
        """Numbers of about 1 that the time is linear in, none of which makes a round shorter."""
        tokens = float(self.num_tokens)
        return [
            1.0,
            float(self.is_blockwise),
            self.num_rows / 16,
            self.num_kv_tokens / 16_384,
            *(max(0.0, tokens - knee) / 256 for knee in _KNEES),
        ]

    def cell(self) -> tuple[bool, int, int]:
        """Shapes within about a fifth of each other are one cell."""
        return self.is_blockwise, _step(self.num_rows), _step(self.num_tokens)


# Of the cells around one: how far they are, and what they count.
_AROUND = tuple(
    (rows, tokens, _PER_STEP ** (rows * rows + tokens * tokens))
    for rows in range(-_REACH, _REACH + 1)
    for tokens in range(-_REACH, _REACH + 1)
    if (rows, tokens) != (0, 0)
)


def _step(count: int) -> int:
    return round(2.5 * math.log2(max(count, 1)))


@dataclass
class _Cell:
    features: list[float]
    seconds: float
    weight: float
    seen_at: int


class RoundTimes:
    """Seconds of a round by its shape.

    Attributes:
        num_observations: rounds seen so far.
        last_s: what the last one took; None before the first.
    """

    def __init__(self) -> None:
        self.num_observations = 0
        self.last_s: float | None = None
        self._pace = 1.0
        self._cells: dict[tuple[bool, int, int], _Cell] = {}
        self._weights = [0.0] * _NUM_FEATURES
        self._is_stale = True

    def observe(self, shape: RoundShape, seconds: float) -> None:
        """Learn from a round; one that took far longer than its like counts as twice its like."""
        seconds = max(seconds, _SHORTEST_S)
        self.num_observations += 1
        self.last_s = seconds
        key, features = shape.cell(), shape.features()
        cell = self._cells.get(key)
        if cell is not None and cell.weight >= _KNOWN_WELL:
            error = seconds / (self._pace * cell.seconds)
            self._pace *= min(max(error, 1 / _OUTLIER), _OUTLIER) ** _PACE_SHARE
        seconds /= self._pace
        if cell is None:
            self._cells[key] = _Cell(features, seconds, 1.0, self.num_observations)
            if len(self._cells) <= _FEW_CELLS:
                self._is_stale = True
            return
        cell.weight = min(cell.weight + 1, _MAX_CELL_WEIGHT)
        if cell.weight <= _TRUSTED:
            # The first rounds of a shape pay for what later ones find ready.
            cell.seconds = min(seconds, cell.seconds)
        else:
            cell.seconds += (min(seconds, _OUTLIER * cell.seconds) - cell.seconds) / cell.weight
        cell.features = [old + (new - old) / cell.weight for old, new in zip(cell.features, features, strict=True)]
        cell.seen_at = self.num_observations

    def refit(self) -> None:
        """Fit the line to the cells anew at the next question; it costs a millisecond or two."""
        self._is_stale = True

    def num_seen(self, shape: RoundShape) -> float:
        """Rounds of about this shape that ran, at most 32, those long ago counting less."""
        cell = self._cells.get(shape.cell())
        if cell is None:
            return 0.0
        return float(cell.weight * 0.5 ** ((self.num_observations - cell.seen_at) / _KNOWN_HALF_LIFE))

    def seconds(self, shape: RoundShape) -> float:
        """Expected seconds of a round; without any observation in units of the shortest round."""
        if self._is_stale:
            self._weights, self._is_stale = self._fit(), False
        fitted = max(_dot(self._weights, shape.features()), _SHORTEST_S)
        around = self._off_the_line_around(shape)
        cell = self._cells.get(shape.cell())
        if cell is None:
            return self._pace * fitted * (1 + around)
        doubt = self.doubt(shape)
        found = fitted * (1 + (1 - doubt) * self._off_the_line(cell) + doubt * around)
        return self._pace * max(found, 0.2 * cell.seconds)

    def doubt(self, shape: RoundShape) -> float:
        """How little is known of rounds of about this shape: 1 if none ran, towards 0 with each one."""
        cell = self._cells.get(shape.cell())
        return 1.0 if cell is None else _DOUBT / (cell.weight + _DOUBT)

    def _off_the_line(self, cell: _Cell) -> float:
        return cell.seconds / max(_dot(self._weights, cell.features), _SHORTEST_S) - 1

    def _off_the_line_around(self, shape: RoundShape) -> float:
        """Mean of what the cells around the shape's own are off the line, as a share of it."""
        is_blockwise, rows, tokens = shape.cell()
        total, weights = 0.0, _DOUBT
        for far_rows, far_tokens, share in _AROUND:
            cell = self._cells.get((is_blockwise, rows + far_rows, tokens + far_tokens))
            if cell is not None:
                weight = share * cell.weight
                total += weight * self._off_the_line(cell)
                weights += weight
        return total / weights

    def _fit(self) -> list[float]:
        """Coordinate descent on the normal equations, no weight below 0."""
        points = self._points()
        size = len(points[0][0])
        gram = [[0.0] * size for _ in range(size)]
        target = [0.0] * size
        for features, seconds, weight in points:
            for row in range(size):
                scaled = weight * features[row]
                if scaled:
                    target[row] += scaled * seconds
                    gram_row = gram[row]
                    for column in range(size):
                        gram_row[column] += scaled * features[column]
        weights = list(self._weights)
        for _ in range(_SWEEPS):
            for row in range(size):
                gap = target[row] - _dot(gram[row], weights)
                weights[row] = max(0.0, weights[row] + gap / (gram[row][row] + 1e-12))
        return weights

    def _points(self) -> list[tuple[list[float], float, float]]:
        """Cells with their weights, and rounds of the prior in the cells' scale; errors count relatively."""
        scale = 1.0
        if self._cells:
            ratios = [(cell.seconds / _prior(cell.features), cell.weight) for cell in self._cells.values()]
            scale = sum(ratio * weight for ratio, weight in ratios) / sum(weight for _, weight in ratios)
        points = []
        for cell in self._cells.values():
            age = 0.5 ** ((self.num_observations - cell.seen_at) / _HALF_LIFE)
            points.append((cell.features, cell.seconds, cell.weight * age / cell.seconds**2))
        for rows in (1, 4, 16, 64):
            for width in (1, 8, 32):
                features = RoundShape(rows, rows * width, rows * 512).features()
                seconds = scale * _prior(features)
                points.append((features, seconds, _PRIOR_WEIGHT / seconds**2))
        return points


def _prior(features: Sequence[float]) -> float:
    """A roofline: flat up to `FREE_TOKENS`, then in proportion."""
    tokens = 256 * features[4]
    return max(1.0, tokens / FREE_TOKENS) + 0.02 * features[2] + 0.05 * features[3]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
