"""lm-evaluation-harness as the engine of an eval: its tasks, our server as the model.

Its chat model is used as it is, with our fields in every request; only the answers' `dlm` objects and
usage are looked at in passing, so that tokens per forward stand beside its scores.
"""

from __future__ import annotations

import importlib.util
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from dlm_sglang.errors import SettingsError
from dlm_sglang.measure import identity
from dlm_sglang.measure.client import FIRST_SERVER_ERROR, STATS_KEY, Record, RequestRefused, ServerGone
from dlm_sglang.measure.grid import DecodeSetting
from dlm_sglang.measure.metrics import cost

if TYPE_CHECKING:
    from dlm_sglang.measure.evaluate import EvalPlan

# Scores that are right or wrong per document, most trusted first.
BINARY_METRICS = ("exact_match", "acc", "pass@1")


def require() -> None:
    """Refuse early where the harness is not installed.

    Raises:
        SettingsError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SettingsError(
            "lm-evaluation-harness is not installed: --tasks needs it",
            code="harness-missing",
            hint="pip install -r deploy/requirements/lm-eval.txt; the bundled tasks need nothing",
        )


def measurement(plan: EvalPlan, model: str, setting: DecodeSetting) -> Callable[[], Mapping[str, object]]:
    """A measurement of all of the plan's tasks in one setting.

    Raises:
        SettingsError: the harness is missing.
    """
    require()

    def measure() -> dict[str, object]:
        import lm_eval
        from lm_eval.tasks import TaskManager

        identity.flush_cache(plan.url, plan.api_key)
        seen = _Seen([], 0.0)
        with _told_as_ours(plan.url):
            results = lm_eval.simple_evaluate(
                model=_chat_model(plan, model, seen),
                tasks=list(plan.harness_tasks),
                limit=plan.num_prompts,
                apply_chat_template=True,
                gen_kwargs={**plan.sampling, **setting.fields()},
                task_manager=TaskManager(include_path=None if plan.include_path is None else str(plan.include_path)),
                bootstrap_iters=0,
            )
        if not seen.records:
            raise ServerGone(f"{plan.url} gave no answer")
        return {"fields": setting.fields(), **_scores(results["samples"]), "numbers": _numbers(seen)}

    return measure


@contextmanager
def _told_as_ours(url: str) -> Iterator[None]:
    """Failures of the harness's HTTP client, told apart as everywhere else."""
    try:
        yield
    except aiohttp.ClientResponseError as error:
        if error.status < FIRST_SERVER_ERROR:
            raise RequestRefused(f"the server answered {error.status}: {error.message}") from None
        raise ServerGone(f"the server answered {error.status}: {error.message}") from None
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise ServerGone(f"{url} stopped answering: {error or type(error).__name__}") from None


@dataclass
class _Seen:
    """What the answers cost, and how long it took to get them."""

    records: list[Record]
    elapsed_s: float


def _chat_model(plan: EvalPlan, model: str, seen: _Seen) -> object:
    """The harness's own chat model, which also writes down what every answer cost."""
    from lm_eval.models.openai_completions import LocalChatCompletion

    class RecordingChatModel(LocalChatCompletion):  # type: ignore[misc]
        def parse_generations(self, outputs: object, **kwargs: object) -> list[str]:
            answers = outputs if isinstance(outputs, list) else [outputs]
            seen.records.extend(_record(answer) for answer in answers if isinstance(answer, dict))
            texts: list[str] = super().parse_generations(outputs, **kwargs)
            return texts

        def generate_until(self, requests: object, **kwargs: object) -> list[str]:
            begun = time.perf_counter()
            texts: list[str] = super().generate_until(requests, **kwargs)
            seen.elapsed_s += time.perf_counter() - begun
            return texts

    return RecordingChatModel(
        model=model,
        base_url=f"{plan.url}/v1/chat/completions",
        num_concurrent=plan.concurrency,
        tokenizer_backend="none",
        tokenized_requests=False,
        max_gen_toks=plan.max_tokens,
        # An answer after a failure would be timed and counted twice.
        max_retries=1,
    )


def _record(answer: Mapping[str, object]) -> Record:
    usage, stats = answer.get("usage"), answer.get(STATS_KEY)
    counts: Mapping[str, int] = usage if isinstance(usage, dict) else {}
    record = Record(0.0, 0.0, 0.0, [], counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0), "", "")
    record.add_cost(stats if isinstance(stats, dict) else {})
    return record


def _numbers(seen: _Seen) -> dict[str, float | None]:
    """The harness keeps the times of single requests to itself; their sums are known."""
    output_tokens = sum(record.output_tokens for record in seen.records)
    return {
        "requests": len(seen.records),
        "elapsed_s": seen.elapsed_s,
        "output_tokens": output_tokens,
        "tok_s": output_tokens / seen.elapsed_s,
        **cost(seen.records),
    }


def _scores(samples: Mapping[str, Sequence[Mapping[str, object]]]) -> dict[str, object]:
    """Hits document by document, over all tasks in turn, and each task's share.

    Raises:
        SettingsError: a task has no score that is right or wrong.
    """
    hits, answers, by_task = "", [], {}
    for task in sorted(samples):
        own = ""
        ordered = sorted(samples[task], key=lambda sample: int(str(sample["doc_id"])))
        for sample in ordered:
            name = next((metric for metric in BINARY_METRICS if metric in sample), None)
            if name is None:
                raise SettingsError(
                    f"task {task} has none of the scores {', '.join(BINARY_METRICS)}",
                    code="task-not-binary",
                    hint="name tasks whose answers are right or wrong",
                )
            score = sample[name]
            own += "1" if isinstance(score, int | float) and score >= 1 else "0"
            answers.append(zlib.crc32(str(sample["resps"]).encode()))
        hits += own
        by_task[task] = own.count("1") / len(own)
    return {"hits": hits, "answers": answers, "by_task": by_task}
