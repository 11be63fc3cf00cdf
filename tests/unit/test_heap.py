"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading, time
import psutil
from dlm_sglang import heap

if not heap.trim():
    sys.exit(77)
me = psutil.Process()
# Every second one lives on, so nothing is free at the heap's end.
kept = [bytearray(20000) for _ in range(5000)]
full = me.memory_info().rss
kept = kept[::2]
before = me.memory_info().rss
heap.keep_trimmed(0.1)
heap.keep_trimmed(0.1)
time.sleep(1)
after = me.memory_info().rss
print(full >> 20, before >> 20, after >> 20, [t.name for t in threading.enumerate()].count("dlm-heap-trim"))
"""


def test_gaps_between_what_lives_on_are_given_back_by_one_thread() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this C library has no malloc_trim")
    assert done.returncode == 0, done.stderr
    _full, before, after, num_threads = map(int, done.stdout.split())
    assert num_threads == 1
    # Half of it was free.
    assert after < before - 20
