"""Load against a running server: every setting in every pattern, repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dlm_sglang.measure import identity, metrics
from dlm_sglang.measure.drive import Pattern, drive
from dlm_sglang.measure.grid import DecodeSetting
from dlm_sglang.measure.metrics import Numbers, Targets
from dlm_sglang.measure.prompts import PromptSet
from dlm_sglang.measure.store import Line, Store, numbers_of, select
from dlm_sglang.measure.sweep import Cell, Say, interleaved, run_sweep

WARM_UP_REQUESTS = 8


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        requests: per measurement; at least `rounds` times the concurrency.
        sampling: fields that every request carries beside its prompt.
    """

    url: str
    settings: Sequence[DecodeSetting]
    patterns: Sequence[Pattern]
    prompts: PromptSet
    repetitions: int = 3
    requests: int = 32
    rounds: int = 4
    sampling: dict[str, object] = field(default_factory=lambda: {"temperature": 0})
    targets: Targets = field(default_factory=Targets)
    stream: bool = True
    warm_prefix_cache: bool = False
    api_key: str | None = None

    def num_requests(self, pattern: Pattern) -> int:
        return max(self.requests, self.rounds * (pattern.concurrency or 0))


def run_bench(plan: BenchPlan, out: Path, say: Say, *, resume: bool = False) -> Store:
    """Measure everything that `out` does not hold yet.

    Raises:
        ServerGone: the server stopped answering; what was finished is in `out`.
        SettingsError: `out` holds a run of something else.
    """
    server = identity.identify(plan.url, plan.api_key)
    equal = {
        "what": "bench",
        "model": server.model,
        "checkpoint": server.checkpoint,
        "prompts": f"{plan.prompts.name} {plan.prompts.digest}",
        "sampling": plan.sampling,
        "requests": plan.requests,
        "rounds": plan.rounds,
        "stream": plan.stream,
        "warm_prefix_cache": plan.warm_prefix_cache,
        "targets": asdict(plan.targets),
    }
    store = Store(out, equal, {"server": asdict(server), "client": identity.machine()}, resume=resume)
    groups = [
        [
            _cell(plan, server.model, setting, pattern, repetition)
            for pattern in plan.patterns
            for setting in plan.settings
        ]
        for repetition in range(plan.repetitions)
    ]
    run_sweep(interleaved(groups), store, say, lambda line: _told(numbers_of(line)))
    return store


def _cell(plan: BenchPlan, model: str, setting: DecodeSetting, pattern: Pattern, repetition: int) -> Cell:
    key = {"setting": setting.label, **asdict(pattern), "repetition": repetition}
    told = f"{setting.label}, {pattern.label}, repetition {repetition + 1}"
    return Cell(key, told, _measurement(plan, model, setting, pattern, repetition))


def _measurement(
    plan: BenchPlan, model: str, setting: DecodeSetting, pattern: Pattern, repetition: int
) -> Callable[[], dict[str, object]]:
    def measure() -> dict[str, object]:
        count = plan.num_requests(pattern)
        # Other prompts in every repetition, where there are enough; the same for all settings.
        given = plan.prompts.take(count, start=repetition * count)
        bodies = [{**body, **plan.sampling, **setting.fields(), "model": model} for body in given]
        warm_up = bodies[: min(WARM_UP_REQUESTS, pattern.concurrency or 1)]
        drive(plan.url, warm_up, Pattern(concurrency=len(warm_up)), stream=plan.stream, api_key=plan.api_key)
        if not plan.warm_prefix_cache:
            identity.flush_cache(plan.url, plan.api_key)
        run = drive(plan.url, bodies, pattern, stream=plan.stream, seed=repetition, api_key=plan.api_key)
        numbers = metrics.summary(run.records, run.elapsed_s, plan.targets)
        numbers["query_tokens_per_token"] = _query_tokens_per_token(setting, numbers)
        return {"fields": setting.fields(), "numbers": numbers}

    return measure


def _query_tokens_per_token(setting: DecodeSetting, numbers: Numbers) -> float | None:
    """The price in compute: positions that forwards read per token won; unknown where the server chose the block."""
    tpf = numbers["tpf"]
    if tpf is None:
        return None
    if setting.mode == "autoregressive":
        return 1.0 / tpf
    return setting.block_length / tpf if setting.block_length else None


def _told(numbers: Numbers) -> str:
    words = [f"{numbers['tok_s']:.0f} tok/s", f"TTFT {numbers['ttft_ms_p50']:.0f} ms"]
    if numbers["tpf"] is not None:
        words.append(f"TPF {numbers['tpf']:.2f}")
    return ", ".join(words)


@dataclass(frozen=True)
class Row:
    """One setting in one pattern over its repetitions: median, smallest, largest of each number."""

    setting: str
    pattern: Pattern
    repetitions: int
    numbers: dict[str, tuple[float, float, float]]
    refused: str = ""

    def median(self, name: str) -> float | None:
        return self.numbers[name][0] if name in self.numbers else None


def rows_of(lines: Sequence[Line]) -> list[Row]:
    """The rows of a table, in the order of the sweep's first repetition."""
    keys: dict[tuple[object, object, object], None] = {}
    for line in lines:
        key = line["key"]
        assert isinstance(key, dict)
        keys.setdefault((key["setting"], key["concurrency"], key["rate_s"]))
    rows = []
    for setting, concurrency, rate_s in keys:
        own = select(lines, setting=setting, concurrency=concurrency, rate_s=rate_s)
        runs = [numbers_of(line) for line in own]
        names = dict.fromkeys(name for run in runs for name in run)
        numbers = {name: found for name in names if (found := metrics.spread(runs, name)) is not None}
        refused = next((str(line["refused"]) for line in own if "refused" in line), "")
        pattern = Pattern(
            concurrency if isinstance(concurrency, int) else None, rate_s if isinstance(rate_s, int | float) else None
        )
        rows.append(Row(str(setting), pattern, len(own), numbers, refused))
    return rows
