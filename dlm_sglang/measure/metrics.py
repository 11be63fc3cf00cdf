"""The numbers of a load, each defined once; `bench` and `eval` both take them from here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlm_sglang.measure.client import Record

Numbers = dict[str, float | None]
MS = 1e3
# z of a two-sided 95 % interval.
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Targets:
    """A request counts for goodput when it meets all that are set."""

    ttft_ms: float | None = None
    token_ms: float | None = None
    latency_ms: float | None = None

    def met_by(self, record: Record) -> bool:
        pairs = (
            (self.ttft_ms, record.ttft_s),
            (self.token_ms, token_gap_s(record)),
            (self.latency_ms, record.latency_s),
        )
        return all(limit_ms is None or seconds is None or seconds * MS <= limit_ms for limit_ms, seconds in pairs)


def cost(records: Sequence[Record]) -> Numbers:
    """What decoding cost, token-weighted: sums over sums, never means of ratios.

    `tpf` counts every decode forward, denoise and commit ones; `tpf_denoise` leaves commit forwards out, as
    papers do. None where the server does not report its forwards.
    """
    forwards = sum(record.num_forwards for record in records)
    denoise = sum(record.num_denoise_forwards for record in records)
    blocks = sum(record.num_blocks for record in records)
    tokens = sum(record.num_block_tokens for record in records)
    return {
        "num_forwards": forwards,
        "num_block_tokens": tokens,
        "tpf": _ratio(tokens, forwards),
        "tpf_denoise": _ratio(tokens, denoise),
        "accept_length": _ratio(tokens, blocks),
        "forwards_per_block": _ratio(forwards, blocks),
    }


def summary(records: Sequence[Record], elapsed_s: float, targets: Targets | None = None) -> Numbers:
    """All numbers of one run; times in milliseconds."""
    output_tokens = sum(record.output_tokens for record in records)
    chunks = sum(1 + len(record.gaps_s) for record in records)
    user_tok_s = [record.output_tokens / record.latency_s for record in records if record.latency_s > 0]
    token_gaps = [gap for record in records if (gap := token_gap_s(record)) is not None]
    numbers: Numbers = {
        "requests": len(records),
        "elapsed_s": elapsed_s,
        "prompt_tokens": sum(record.prompt_tokens for record in records),
        "output_tokens": output_tokens,
        "tok_s": output_tokens / elapsed_s,
        "user_tok_s": statistics.fmean(user_tok_s) if user_tok_s else None,
        "user_tok_s_p10": percentile(user_tok_s, 10),
        "tokens_per_chunk": _ratio(output_tokens, chunks),
        **_percentiles("ttft_ms", [record.ttft_s for record in records]),
        **_percentiles("chunk_gap_ms", [gap for record in records for gap in record.gaps_s]),
        **_percentiles("token_gap_ms", token_gaps),
        **_percentiles("latency_ms", [record.latency_s for record in records]),
        **cost(records),
    }
    if targets is not None and targets != Targets():
        good = sum(targets.met_by(record) for record in records)
        numbers |= {"goodput_s": good / elapsed_s, "good_share": _ratio(good, len(records))}
    return numbers


def token_gap_s(record: Record) -> float | None:
    """Time per token after the first chunk; blocks arrive in bursts, so this is not what a reader sees."""
    if record.output_tokens < 2 or not record.gaps_s:
        return None
    return (record.latency_s - record.ttft_s) / (record.output_tokens - 1)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` percent of `values` do not exceed, on the line between neighbours."""
    if not values:
        return None
    ordered = sorted(values)
    place = share / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(runs: Sequence[Mapping[str, float | None]], name: str) -> tuple[float, float, float] | None:
    """Median, smallest and largest of a number over repetitions."""
    values = [value for run in runs if (value := run.get(name)) is not None]
    return (statistics.median(values), min(values), max(values)) if values else None


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share that was `hits` of `total` (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = hits / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_loss(only_first: int, only_second: int, total: int) -> tuple[float, float, float]:
    """How much more often the first of two settings is right on the same prompts, with its 95 % interval.

    Args:
        only_first: prompts that only the first one gets right.
        only_second: prompts that only the second one gets right.

    Source: Agresti and Min 2005, the adjusted Wald interval of a difference of paired shares.
    """
    first, second, n = only_first + 0.5, only_second + 0.5, total + 2
    centre = (first - second) / n
    half = Z95 * math.sqrt(first + second - (first - second) ** 2 / n) / n
    return (only_first - only_second) / total, centre - half, centre + half


def _percentiles(name: str, seconds: Sequence[float]) -> Numbers:
    return {
        f"{name}_p{share}": None if (value := percentile(seconds, share)) is None else value * MS
        for share in (50, 95, 99)
    }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
