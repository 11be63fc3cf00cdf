"""Growth is told from noise, and a warm-up from growth."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from dlm_sglang.measure.soak.memory import Sample, sample, trend


def samples(slope_mib_per_min: float, *, noise_mib: float = 2.0, warm_up_mib: float = 0.0) -> list[Sample]:
    chance = random.Random(1)
    return [
        Sample(
            10.0 * number,
            1000.0 + slope_mib_per_min * number / 6 + chance.gauss(0, noise_mib) + (warm_up_mib * min(number, 40) / 40),
        )
        for number in range(180)
    ]


def test_noise_is_no_growth() -> None:
    line = trend(samples(0.0))
    assert line.is_flat
    assert abs(line.slope_mib_per_min) < 0.2
    assert line.num_samples == 120


def test_a_leak_of_a_mib_a_minute_is_seen_through_the_noise() -> None:
    line = trend(samples(1.0))
    assert not line.is_flat
    assert line.slope_mib_per_min == pytest.approx(1.0, abs=0.2)


def test_caches_that_fill_at_the_start_are_no_leak() -> None:
    assert trend(samples(0.0, warm_up_mib=300.0)).is_flat


def test_memory_that_shrinks_is_no_leak() -> None:
    assert trend(samples(-1.0)).is_flat


def test_too_few_samples_are_said() -> None:
    with pytest.raises(ValueError, match="6 samples"):
        trend([Sample(float(second), 1.0) for second in range(6)])


def test_descendants_are_counted_and_this_process_is_not() -> None:
    program = "held = bytearray(64 << 20); print('held', flush=True); input()"
    before = sample(os.getpid(), 0.0).rss_mib
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        grown = sample(os.getpid(), 0.0).rss_mib - before
        assert 64 < grown < 128
        assert sample(child.pid, 0.0).rss_mib == pytest.approx(grown, abs=4)
        child.communicate("\n")
