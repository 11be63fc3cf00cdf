"""Give memory that was freed back to the system, now and then.

A scheduler under load makes and frees small tensors all the time, and glibc keeps the gaps between what lives on: about
5 MiB after a thousand requests of the bundled checkpoint. It is a part of a busy scheduler's growth, not all of it
(docs/operating.md, Soak).
"""

from __future__ import annotations

import ctypes
import threading
import time

INTERVAL_S = 60.0

_started = threading.Event()


def trim() -> bool:
    """Give back what can be given back; False where the C library has no such function. Takes milliseconds."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return False
    return True


def keep_trimmed(interval_s: float = INTERVAL_S) -> None:
    """Trim for as long as the process lives, from a thread of its own; once per process."""
    if _started.is_set() or not trim():
        return
    _started.set()

    def work() -> None:
        while True:
            time.sleep(interval_s)
            trim()

    threading.Thread(target=work, name="dlm-heap-trim", daemon=True).start()
