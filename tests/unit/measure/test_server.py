"""Servers of measurements end with them."""

from __future__ import annotations

import signal
import subprocess
import sys

PROGRAM = """
import time
from dlm_sglang.measure.server import ended_in_order

with ended_in_order(), ended_in_order():
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("ended", flush=True)
"""


def test_a_measurement_told_to_end_cleans_up_behind_itself() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=30)
    assert told == "ended\n"
    assert process.returncode == 128 + signal.SIGTERM
