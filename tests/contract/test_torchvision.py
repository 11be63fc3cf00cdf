"""The installed torchvision imports on this machine, with or without its compiled library."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, warnings
import torchvision, torch
from torchvision import extension
left = [f for f in sys.meta_path if type(f).__name__ == "_DefineBeforeRegistrations"]
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
try:
    print(left, extension._has_ops(), torchvision.ops.nms(boxes, torch.ones(1), 0.5).tolist())
except RuntimeError as error:
    print(left, extension._has_ops(), str(error).split('.')[0])
"""


def test_import_passes_and_missing_operators_say_so() -> None:
    """Fails when torchvision registers a fake for an operator that dlm_sglang/torchvision_cpu.py does not define."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("[] True [0]", "[] False Couldn't load custom C++ ops")
