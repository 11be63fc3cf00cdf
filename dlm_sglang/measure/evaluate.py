"""Accuracy of a running server in many settings, on tasks whose answers can be checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dlm_sglang.bundled.tasks import HELD_OUT_SEED, TASK_NAMES, Task, check, generate
from dlm_sglang.measure import identity, metrics
from dlm_sglang.measure.client import Record
from dlm_sglang.measure.drive import Pattern, drive
from dlm_sglang.measure.grid import DecodeSetting
from dlm_sglang.measure.store import Line, Store
from dlm_sglang.measure.sweep import Cell, Say, run_sweep

MAX_TOKENS = 64


@dataclass(frozen=True)
class EvalPlan:
    """What to measure.

    Attributes:
        seed: of the held-out prompts.
        harness_tasks: task names of lm-evaluation-harness in place of the bundled ones.
        include_path: folder with more of its task files.
    """

    url: str
    settings: Sequence[DecodeSetting]
    num_prompts: int = 300
    seed: int = HELD_OUT_SEED
    max_tokens: int = MAX_TOKENS
    concurrency: int = 8
    sampling: dict[str, object] = field(default_factory=lambda: {"temperature": 0})
    harness_tasks: tuple[str, ...] = ()
    include_path: Path | None = None
    api_key: str | None = None


def run_eval(plan: EvalPlan, out: Path, say: Say, *, resume: bool = False) -> tuple[Store, identity.ServerIdentity]:
    """Measure every setting that `out` does not hold yet.

    Raises:
        ServerGone: the server stopped answering; what was finished is in `out`.
        SettingsError: `out` holds a run of something else, or lm-evaluation-harness is asked for and missing.
    """
    server = identity.identify(plan.url, plan.api_key)
    equal = {
        "what": "eval",
        "model": server.model,
        "checkpoint": server.checkpoint,
        "tasks": list(plan.harness_tasks) or "bundled held-out",
        "prompts": plan.num_prompts,
        "seed": plan.seed,
        "max_tokens": plan.max_tokens,
        "sampling": plan.sampling,
    }
    about = {"server": asdict(server), "client": identity.machine(), "concurrency": plan.concurrency}
    store = Store(out, equal, about, resume=resume)
    tasks = [] if plan.harness_tasks else generate("held-out", plan.seed, plan.num_prompts)
    cells = []
    for setting in plan.settings:
        if plan.harness_tasks:
            from dlm_sglang.measure.harness import measurement

            measure = measurement(plan, server.model, setting)
        else:
            measure = _measurement(plan, server.model, setting, tasks)
        cells.append(Cell({"setting": setting.label}, setting.label, measure))
    run_sweep(cells, store, say, _told)
    return store, server


def _measurement(
    plan: EvalPlan, model: str, setting: DecodeSetting, tasks: Sequence[Task]
) -> Callable[[], Mapping[str, object]]:
    def measure() -> dict[str, object]:
        common = {**plan.sampling, **setting.fields(), "model": model, "max_tokens": plan.max_tokens}
        bodies = [{"messages": task.messages, **common} for task in tasks]
        # Every setting begins with an empty prefix cache: else the first one pays for all.
        identity.flush_cache(plan.url, plan.api_key)
        run = drive(plan.url, bodies, Pattern(plan.concurrency), stream=False, api_key=plan.api_key)
        right = [_is_right(task, record) for task, record in zip(tasks, run.records, strict=True)]
        return {
            "fields": setting.fields(),
            "hits": "".join("01"[hit] for hit in right),
            "answers": [zlib.crc32(record.text.encode()) for record in run.records],
            "by_task": _by_task(tasks, right),
            "numbers": metrics.summary(run.records, run.elapsed_s),
        }

    return measure


def _is_right(task: Task, record: Record) -> bool:
    """An answer that ran into the token limit is wrong, whatever it says."""
    return record.finish_reason == "stop" and check(task, record.text)


def _by_task(tasks: Sequence[Task], right: Sequence[bool]) -> dict[str, float]:
    shares = {}
    for name in TASK_NAMES:
        own = [hit for task, hit in zip(tasks, right, strict=True) if task.name == name]
        if own:
            shares[name] = sum(own) / len(own)
    return shares


def _told(line: Line) -> str:
    hits, numbers = str(line["hits"]), line["numbers"]
    assert isinstance(numbers, dict)
    words = [f"accuracy {hits.count('1') / len(hits):.3f}"]
    if numbers.get("tpf"):
        words.append(f"TPF {numbers['tpf']:.2f}")
    if numbers.get("tok_s"):
        words.append(f"{numbers['tok_s']:.0f} tok/s")
    return ", ".join(words)
