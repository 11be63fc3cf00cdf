"""Memory of a server's processes over time, and whether it grows."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

_MIB = 1 << 20
# Caches and pools fill first: growth is looked for in what comes after.
WARM_UP_SHARE = 1 / 3
# A line through samples that only fluctuate has a slope, too; beyond so many standard errors it is growth.
MAX_ERRORS = 3.0
# And growth that is a real line but tiny: so little of the whole, over the time that was looked at, is none.
MAX_SHARE = 0.01
MIN_SAMPLES = 6


@dataclass(frozen=True)
class Sample:
    """Resident memory of all processes of a server together.

    Attributes:
        time_s: since the start of the load.
    """

    time_s: float
    rss_mib: float


@dataclass(frozen=True)
class Trend:
    """A straight line through the samples after the warm-up.

    Attributes:
        slope_mib_per_min: growth.
        error_mib_per_min: standard error of the slope.
        span_min: the time that was looked at.
    """

    slope_mib_per_min: float
    error_mib_per_min: float
    span_min: float
    mean_mib: float
    num_samples: int

    @property
    def is_flat(self) -> bool:
        """No growth that stands out of the noise, or so little that it does not count."""
        within_noise = self.slope_mib_per_min <= MAX_ERRORS * self.error_mib_per_min
        return within_noise or self.slope_mib_per_min * self.span_min <= MAX_SHARE * self.mean_mib


def sample(pid: int, time_s: float) -> Sample:
    """The memory of a process and its descendants now; of the descendants alone where it is this process."""
    root = psutil.Process(pid)
    total = 0
    for process in [*([] if pid == os.getpid() else [root]), *root.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return Sample(time_s, total / _MIB)


def trend(samples: Sequence[Sample]) -> Trend:
    """The line through the samples after the warm-up.

    Raises:
        ValueError: there are too few of them.
    """
    end_s = samples[-1].time_s if samples else 0.0
    kept = [one for one in samples if one.time_s >= WARM_UP_SHARE * end_s]
    if len(kept) < MIN_SAMPLES:
        raise ValueError(f"a trend needs {MIN_SAMPLES} samples after the warm-up, got {len(kept)}")
    minutes, sizes = [one.time_s / 60 for one in kept], [one.rss_mib for one in kept]
    slope, start = statistics.linear_regression(minutes, sizes)
    left = [size - (start + slope * minute) for minute, size in zip(minutes, sizes, strict=True)]
    spread = math.sqrt(sum(one * one for one in left) / (len(kept) - 2))
    middle = statistics.fmean(minutes)
    error = spread / math.sqrt(sum((minute - middle) ** 2 for minute in minutes))
    return Trend(slope, error, minutes[-1] - minutes[0], statistics.fmean(sizes), len(kept))
