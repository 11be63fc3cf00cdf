"""The whole plan of one checkpoint on one GPU: memory, concurrency, speed bounds, crossovers, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.plan import memory, roofline
from dlm_sglang.measure.plan.gpu import CPU, GIB, Gpu, Rates
from dlm_sglang.measure.plan.roofline import Way, Yield
from dlm_sglang.measure.plan.shape import BYTES_OF_DTYPE, ModelShape

MOST_RUNNING_REQUESTS = 256
LONGEST_CONTEXT_SHARE = 4
_ROUNDS_UNTIL_STABLE = 4


@dataclass(frozen=True)
class Question:
    """What a plan is asked for.

    Attributes:
        load: requests at a time that the suggested defaults are chosen for.
        context: prompt and answer of a typical request, in tokens.
        mem_fraction_static: None lets the plan choose.
        max_running_requests: None lets the plan choose.
    """

    shape: ModelShape
    gpu: Gpu
    dtype: str
    block_lengths: tuple[int, ...]
    contexts: tuple[int, ...] = (1024, 4096, 8192, 32768)
    concurrencies: tuple[int, ...] = (1, 4, 8, 16, 32, 64, 128)
    gain: Yield = field(default_factory=Yield)
    load: int = 8
    context: int = 4096
    tp_size: int = 1
    page_size: int = 1
    mem_fraction_static: float | None = None
    max_running_requests: int | None = None
    max_total_tokens: int | None = None


@dataclass(frozen=True)
class WayCost:
    """What one request costs in one mode beside the KV of its context."""

    way: str
    tokens_per_forward: float
    block_kv_bytes: int
    logits_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class SpeedRow:
    """Bounds at one number of requests of one context length; computed, not measured."""

    context: int
    requests: int
    forward_ms_limit: Mapping[str, float]
    forward_ms_attainable: Mapping[str, float]
    tok_s_limit: Mapping[str, float]
    tok_s_attainable: Mapping[str, float]
    fits: bool


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        concurrency: context length to way to the largest number of requests in the KV pool.
        crossovers: context length to way to the smallest number of requests at which AR is as fast; None
            where that is beyond the KV pool.
        settings: keys and values of the suggested YAML file.
    """

    question: Question
    capacity: memory.Capacity
    runtime_bytes: int
    max_running_requests: int
    costs: list[WayCost]
    concurrency: dict[int, dict[str, int]]
    speed: list[SpeedRow]
    crossovers: dict[int, dict[str, int | None]]
    best_way: Way

    @property
    def ways(self) -> list[Way]:
        return roofline.ways(list(self.question.block_lengths))


def make_plan(question: Question) -> Plan:
    """Answer a question.

    Raises:
        SettingsError: the weights do not fit.
    """
    question = replace(question, gpu=_of_all_gpus(question))
    rows, capacity = _settle(question)
    if capacity.kv_tokens < question.context:
        raise SettingsError(
            f"{question.shape.name} in {question.dtype} needs {capacity.weight_bytes / GIB:.1f} GiB for weights; that "
            f"leaves {capacity.kv_tokens} KV tokens on {question.gpu.name} ({capacity.free_bytes / GIB:.1f} GiB), too "
            f"few for one request of {question.context}",
            code="model-too-large",
            hint="take more GPUs (--tp-size), a larger one, or a shorter --context",
        )
    ways = roofline.ways(list(question.block_lengths))
    longest = max(question.block_lengths)
    return Plan(
        question=question,
        capacity=capacity,
        runtime_bytes=memory.runtime_bytes(
            question.shape, question.gpu, question.dtype, rows, longest, question.tp_size
        ),
        max_running_requests=rows,
        costs=[_cost(question, capacity, way) for way in ways],
        concurrency={
            context: {way.label: memory.max_concurrency(capacity.kv_tokens, context, way.block_length) for way in ways}
            for context in question.contexts
        },
        speed=_speed(question, capacity, ways),
        crossovers=_crossovers(question, capacity, ways),
        best_way=_best_way(question, ways),
    )


def as_json(plan: Plan) -> dict[str, object]:
    """The plan as JSON-ready data."""
    question = plan.question
    return {
        "model": asdict(question.shape),
        "gpu": asdict(question.gpu),
        "dtype": question.dtype,
        "tp_size": question.tp_size,
        "assumptions": asdict(question.gain),
        "memory": {**asdict(plan.capacity), "runtime_bytes": plan.runtime_bytes},
        "per_request": [asdict(cost) for cost in plan.costs],
        "max_concurrency": plan.concurrency,
        "speed_bounds": [asdict(row) for row in plan.speed],
        "autoregressive_overtakes_at": plan.crossovers,
    }


def _of_all_gpus(question: Question) -> Gpu:
    """One GPU of `tp_size`, with the rates of all of them: their talking to each other is left out."""
    gpu = question.gpu
    if question.tp_size == 1 or gpu.bytes_s is None or gpu.flop_s is None:
        return gpu
    return replace(gpu, bytes_s=gpu.bytes_s * question.tp_size, flop_s=gpu.flop_s * question.tp_size)


def _settle(question: Question) -> tuple[int, memory.Capacity]:
    """Running requests and KV pool: more requests need more logits, which leave a smaller pool."""
    shape, gpu, dtype, tp_size = question.shape, question.gpu, question.dtype, question.tp_size
    longest = max(question.block_lengths)
    rows = question.max_running_requests or question.load
    for _ in range(_ROUNDS_UNTIL_STABLE):
        fraction = question.mem_fraction_static
        if fraction is None:
            fraction = memory.suggested_fraction(shape, gpu, dtype, rows, longest, tp_size)
        capacity = memory.capacity(
            shape,
            gpu,
            dtype,
            fraction,
            tp_size=tp_size,
            page_size=question.page_size,
            max_total_tokens=question.max_total_tokens,
        )
        if question.max_running_requests is not None:
            break
        fitting = memory.max_concurrency(capacity.kv_tokens, question.context, longest)
        rows = max(1, min(MOST_RUNNING_REQUESTS, fitting, 64 if gpu.name == CPU else fitting))
    return rows, capacity


def _cost(question: Question, capacity: memory.Capacity, way: Way) -> WayCost:
    return WayCost(
        way=way.label,
        tokens_per_forward=roofline.tokens_per_forward(way, question.gain),
        block_kv_bytes=way.block_length * capacity.kv_bytes_per_token,
        logits_bytes=memory.logits_bytes(question.shape, question.dtype, 1, way.block_length, question.tp_size),
        state_bytes=memory.state_bytes(question.context, way.block_length),
    )


def _speed(question: Question, capacity: memory.Capacity, ways: Sequence[Way]) -> list[SpeedRow]:
    limit, attainable = question.gpu.limit(), question.gpu.attainable()
    if limit is None or attainable is None:
        return []
    dtype_bytes = BYTES_OF_DTYPE[question.dtype]

    def forwards(rates: Rates, rows: int, context: int) -> dict[str, float]:
        return {
            way.label: 1e3 * roofline.forward_s(question.shape, rates, rows, way.block_length, context, dtype_bytes)
            for way in ways
        }

    def speeds(rates: Rates, rows: int, context: int) -> dict[str, float]:
        return {
            way.label: roofline.tok_s(way, question.shape, rates, rows, context, question.gain, dtype_bytes)
            for way in ways
        }

    return [
        SpeedRow(
            context,
            rows,
            forwards(limit, rows, context),
            forwards(attainable, rows, context),
            speeds(limit, rows, context),
            speeds(attainable, rows, context),
            fits=rows <= memory.max_concurrency(capacity.kv_tokens, context, 1),
        )
        for context in question.contexts
        for rows in question.concurrencies
    ]


def _crossovers(question: Question, capacity: memory.Capacity, ways: Sequence[Way]) -> dict[int, dict[str, int | None]]:
    rates = question.gpu.attainable()
    if rates is None:
        return {}
    dtype_bytes = BYTES_OF_DTYPE[question.dtype]
    found: dict[int, dict[str, int | None]] = {}
    for context in question.contexts:

        def rate_of(way: Way, rows: int, context: int = context) -> float:
            return roofline.tok_s(way, question.shape, rates, rows, context, question.gain, dtype_bytes)

        found[context] = {
            way.label: roofline.crossover_rows(
                rate_of, way, memory.max_concurrency(capacity.kv_tokens, context, way.block_length)
            )
            for way in ways[1:]
        }
    return found


def _best_way(question: Question, ways: Sequence[Way]) -> Way:
    """The fastest exact way at the expected load; where no rates are known, self-speculation as trained."""
    rates = question.gpu.attainable()
    exact = [way for way in ways if way.mode != "diffusion"]
    if rates is None:
        trained = min(question.shape.block_length, max(question.block_lengths))
        return Way("self_speculation", trained)
    dtype_bytes = BYTES_OF_DTYPE[question.dtype]
    return max(
        exact,
        key=lambda way: roofline.tok_s(
            way, question.shape, rates, question.load, question.context, question.gain, dtype_bytes
        ),
    )
