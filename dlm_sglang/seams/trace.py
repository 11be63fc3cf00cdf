"""A record of every decode round, for measurements: attached only where the setting `round_trace` names a file.

The hooks sit on SGLang's scheduler and on our model class, so that plain SGLang on the same weights is recorded by
the very same code as our decode loop.
"""

from __future__ import annotations

import atexit
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dlm_sglang.seams.host_reads import HostReads

# A pause this long between rounds is no round's time; what was recorded is written then.
PAUSE_S = 0.05


class RoundTrace:
    """Collects one record per round of this process and appends them to a JSON-lines file.

    A record has `kind` (decode or extend), `start_s` and `end_s` (of the scheduler's call that runs the batch, on
    the monotonic clock), `forward_s` (inside the model; on a GPU only the launches), `rows`, `query_tokens`, and
    `host_reads`, a list of places, where reads are counted.
    """

    def __init__(self, file: Path, *, counts_reads: bool) -> None:
        self._file = file
        self._counts_reads = counts_reads
        self._records: list[dict[str, Any]] = []
        self._forward_s = 0.0
        atexit.register(self.write)

    def around_run_batch(self, original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any) -> Any:
        """Hook on `Scheduler.run_batch`."""
        start_s = time.monotonic()
        if self._records and start_s - self._records[-1]["end_s"] > PAUSE_S:
            self.write()
        is_decode = batch.forward_mode.is_decode()
        layout = getattr(batch.spec_info, "layout", None)
        self._forward_s = 0.0
        with HostReads() if self._counts_reads and is_decode else nullcontext() as reads:
            result = original(scheduler, batch, *args)
        layout = layout or getattr(batch.spec_info, "layout", None)
        decode_tokens = layout.num_tokens if layout else len(batch.reqs)
        self._records.append(
            {
                "kind": "decode" if is_decode else "extend",
                "start_s": start_s,
                "end_s": time.monotonic(),
                "forward_s": self._forward_s,
                "rows": len(batch.reqs),
                "query_tokens": decode_tokens if is_decode else batch.extend_num_tokens,
                "host_reads": reads.places if reads else None,
            }
        )
        return result

    def around_forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Hook on the model's forward."""
        begin_s = time.monotonic()
        result = original(*args, **kwargs)
        self._forward_s += time.monotonic() - begin_s
        return result

    def write(self) -> None:
        """Append what was recorded since the last time."""
        if self._records:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in self._records)
            self._records = []
