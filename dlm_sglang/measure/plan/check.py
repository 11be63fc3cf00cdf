"""The plan's KV pool beside the one that a running server reports."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dlm_sglang.errors import DlmError
from dlm_sglang.measure.plan.gpu import GIB, Gpu
from dlm_sglang.measure.plan.memory import capacity
from dlm_sglang.measure.plan.shape import BYTES_OF_DTYPE, load_shape

TOLERANCE = 0.03
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Comparison:
    """KV tokens as computed and as reported."""

    predicted_kv_tokens: int
    reported_kv_tokens: int
    is_capped: bool
    mem_fraction_static: float
    free_gib: float

    @property
    def difference(self) -> float:
        """Predicted over reported, less one."""
        return self.predicted_kv_tokens / self.reported_kv_tokens - 1

    @property
    def agrees(self) -> bool:
        return abs(self.difference) <= TOLERANCE

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "difference": self.difference}

    def as_text(self) -> str:
        """One line a number."""
        cap = " (capped by max_total_tokens)" if self.is_capped else ""
        return (
            f"free before loading   {self.free_gib:.2f} GiB, mem_fraction_static {self.mem_fraction_static:g}\n"
            f"KV tokens, predicted  {self.predicted_kv_tokens}{cap}\n"
            f"KV tokens, reported   {self.reported_kv_tokens}\n"
            f"difference            {self.difference:+.2%}"
        )


def compare_with_server(url: str, model: str) -> Comparison:
    """Compute the KV pool of a running SGLang server from its settings and compare it with its own report.

    Memory that was free before loading is not reported; it is what was free afterwards, and what weights and
    KV took.

    Raises:
        DlmError: the server does not answer, or is not SGLang.
    """
    server = _server_info(url)
    used = _mapping(server, "memory_usage")
    reported = server.get("max_total_num_tokens")
    if not used or not isinstance(reported, int):
        raise DlmError(f"{url} does not report its KV pool", hint="only SGLang servers can be compared")
    free_gib = sum(_number(used, name) for name in ("startup_available", "kvcache", "weight"))
    fraction = _number(server, "mem_fraction_static")
    cap = server.get("max_total_tokens")
    dtype = str(server.get("dtype"))
    shape = load_shape(model)
    computed = capacity(
        shape,
        Gpu("server", int(free_gib * GIB), None, None, context_bytes=0),
        dtype if dtype in BYTES_OF_DTYPE else shape.dtype,
        fraction,
        tp_size=int(_number(server, "tp_size")),
        page_size=int(_number(server, "page_size")),
        max_total_tokens=cap if isinstance(cap, int) else None,
    )
    return Comparison(computed.kv_tokens, reported, computed.kv_tokens == cap, fraction, free_gib)


def _server_info(url: str) -> Mapping[str, object]:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/server_info", timeout=_TIMEOUT_S) as response:
            info: dict[str, object] = json.load(response)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DlmError(f"{url} did not answer /server_info: {error}") from None
    states = info.get("internal_states")
    return {**info, **(states[0] if isinstance(states, list) and states and isinstance(states[0], dict) else {})}


def _mapping(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def _number(values: Mapping[str, object], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
