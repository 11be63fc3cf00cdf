"""A plan as text for a person, and as the YAML file that `dlm-sglang serve --config` takes."""

from __future__ import annotations

from dlm_sglang.measure.plan.gpu import CPU, GIB
from dlm_sglang.measure.plan.plan import LONGEST_CONTEXT_SHARE, Plan
from dlm_sglang.measure.plan.shape import REPOSITORY_OF
from dlm_sglang.measure.table import render
from dlm_sglang.setting_table import BUNDLED

KIB, MIB = 1 << 10, 1 << 20
SMALLEST_CONTEXT = 1024
COMPUTED = "computed, not measured"


def as_text(plan: Plan) -> str:
    """The tables of the plan."""
    parts = [_memory(plan), _per_request(plan), _concurrency(plan)]
    if plan.speed:
        parts += [_speed(plan), _crossovers(plan)]
    else:
        parts.append("No speed bounds: give --bandwidth-gb-s and --tflop-s as measured on this device.")
    return "\n\n".join([*parts, f"Suggested settings (dlm-sglang serve --config FILE):\n\n{as_yaml(plan)}"])


def as_yaml(plan: Plan) -> str:
    """The suggested YAML file."""
    question, capacity, shape = plan.question, plan.capacity, plan.question.shape
    gpu_count = "" if question.tp_size == 1 else f"{question.tp_size} x "
    lines = [
        "# yaml-language-server: $schema=schema.json",
        f"# {shape.name} in {question.dtype} on {gpu_count}{question.gpu.name}, by `dlm-sglang plan`. {_RULE}",
        "# Every key, with its range and default: docs/parameters.md.",
        f"model_path: {REPOSITORY_OF.get(shape.name, shape.name)}",
    ]
    if shape.name in REPOSITORY_OF:
        lines.append(f"served_model_name: {shape.name}")
    if shape.name == BUNDLED:
        lines.append("served_model_name: nld-bundled")
    lines += [
        f"dtype: {question.dtype}",
        f"tp_size: {question.tp_size}",
        "",
        f"# Weights {capacity.weight_bytes / GIB:.1f} GiB, KV pool {capacity.kv_bytes / GIB:.1f} GiB = "
        f"{capacity.kv_tokens} tokens of {capacity.kv_bytes_per_token / KIB:g} KiB; the rest is for",
        f"# logits, activations and graphs (about {plan.runtime_bytes / GIB:.1f} GiB). "
        "Lower it when start-up runs out of memory.",
        f"mem_fraction_static: {capacity.mem_fraction_static:.2f}",
        f"# KV for as many requests of {question.context} tokens, at most 256.",
        f"max_running_requests: {plan.max_running_requests}",
        f"# The model allows {shape.context_length}; a longer context takes KV from other requests.",
        f"context_length: {suggested_context(plan)}",
        "",
        f"max_block_length: {max(question.block_lengths)}",
        f"# The fastest exact mode at {question.load} requests of {question.context} tokens.",
        f"default_generation_mode: {plan.best_way.mode}",
    ]
    if plan.best_way.block_length > 1:
        lines.append(f"default_block_length: {plan.best_way.block_length}")
    return "\n".join(lines) + "\n"


_RULE = f"Numbers are {COMPUTED}."


def suggested_context(plan: Plan) -> int:
    """A power of two that leaves room for four such requests, or the model's own limit."""
    room = plan.capacity.kv_tokens // LONGEST_CONTEXT_SHARE
    context = SMALLEST_CONTEXT
    while context * 2 <= room:
        context *= 2
    return min(context, plan.question.shape.context_length)


def _memory(plan: Plan) -> str:
    question, capacity = plan.question, plan.capacity
    rows = [
        ("free before loading", capacity.free_bytes, _source(plan)),
        ("weights", capacity.weight_bytes, f"{_count(question.shape.num_params)} parameters, {question.dtype}"),
        ("KV pool", capacity.kv_bytes, f"{capacity.kv_tokens} tokens of {capacity.kv_bytes_per_token} bytes"),
        (
            "kept free",
            capacity.free_bytes - capacity.weight_bytes - capacity.kv_bytes,
            f"mem_fraction_static {capacity.mem_fraction_static:g}; logits, activations and graphs need about "
            f"{_size(plan.runtime_bytes)}",
        ),
    ]
    head = f"{question.shape.name} on {question.gpu.name}, {question.dtype}, tp_size {question.tp_size} ({COMPUTED})"
    return "\n".join([head, *(f"  {name:<20} {_size(size):>10}  {note}" for name, size, note in rows)])


def _source(plan: Plan) -> str:
    if plan.question.gpu.name == CPU:
        return "this machine's memory"
    return "as given" if plan.question.gpu.context_bytes == 0 else "the GPU's memory less the driver's share"


def _per_request(plan: Plan) -> str:
    rows = [
        (
            cost.way,
            f"{cost.tokens_per_forward:.2f}",
            _size(cost.block_kv_bytes),
            _size(cost.logits_bytes),
            _size(cost.state_bytes),
        )
        for cost in plan.costs
    ]
    head = ("per request", "tokens/forward", "block KV", "logits", "state")
    note = "tokens/forward is an assumption (--accept-length, --diffusion-tpf): measure it with `dlm-sglang bench`."
    return f"{render(head, rows)}\n{note}"


def _concurrency(plan: Plan) -> str:
    labels = [way.label for way in plan.ways]
    rows = [
        (f"{context} tokens", *(str(by_way[label]) for label in labels)) for context, by_way in plan.concurrency.items()
    ]
    return render(("requests that fit", *labels), rows)


def _speed(plan: Plan) -> str:
    labels = [way.label for way in plan.ways]
    blocks = []
    for context in plan.question.contexts:
        rows = [
            (
                f"{row.requests}{'' if row.fits else ' *'}",
                f"{row.forward_ms_attainable[labels[0]]:.2f}",
                f"{row.forward_ms_attainable[labels[1]]:.2f}",
                *(f"{row.tok_s_attainable[label]:.0f}{_mark(row.tok_s_attainable, label)}" for label in labels),
            )
            for row in plan.speed
            if row.context == context
        ]
        longest = max(plan.question.block_lengths)
        head = (f"{context} tokens: requests", "ms, 1 token", f"ms, {longest} tokens", *labels)
        blocks.append(render(head, rows))
    note = (
        f"Milliseconds per forward and tok/s of all requests that this device can reach, {COMPUTED}; "
        "+ the best, * more than the KV pool holds."
    )
    return "\n\n".join([*blocks, note])


def _mark(rates: object, label: str) -> str:
    assert isinstance(rates, dict)
    return "+" if rates[label] == max(rates.values()) else " "


def _crossovers(plan: Plan) -> str:
    labels = [way.label for way in plan.ways[1:]]
    rows = [
        (f"{context} tokens", *("-" if by_way[label] is None else str(by_way[label]) for label in labels))
        for context, by_way in plan.crossovers.items()
    ]
    note = "Requests from which AR is at least as fast; - where the KV pool ends before."
    return f"{render(('AR overtakes at', *labels), rows)}\n{note}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _size(num_bytes: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} B"
