"""What ran, told to the client: the `dlm` object of a response.

The decode worker reports a flat dict of statistics per finished choice. SGLang's front end hands
them over inside the HTTP request's own context, where `collector` is set; the middleware puts them
into the response bytes, so that nothing of SGLang's response is parsed and written anew.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar

import orjson

from dlm_sglang.errors import RequestError

Stats = Mapping[str, object]
STATS_KEY = "dlm"

# Each mean, with the count that weighs it when choices are summed up.
_MEANS = {"tokens_per_forward": "num_forwards", "mean_accept_length": "num_blocks"}
_FINISHED = re.compile(rb'"finish_reason":\s*"')


class Collector:
    """What is known of one HTTP request: the statistics by choice index, and why it was refused behind our layer.

    Attributes:
        refusal: the error that SGLang was given as a ValueError, whose text is all that SGLang would tell of it.
        show_block: puts a block that is still denoised into the response: choice index, request id, block. None where
            SGLang's own output has the blocks.
    """

    def __init__(self) -> None:
        self._by_index: dict[int, Stats] = {}
        self.refusal: RequestError | None = None
        self.show_block: Callable[[int, str, dict[str, object]], Awaitable[None]] | None = None

    def record(self, index: int, stats: Stats) -> None:
        """Keep what the worker reported for a finished choice."""
        self._by_index[index] = stats

    def of_choice(self, index: int) -> Stats | None:
        """The statistics of one choice, or None if there are none."""
        return self._by_index.get(index)

    def summary(self) -> dict[str, object] | None:
        """All choices together: counts summed, means weighted; with more than one, a list of each as well."""
        if not self._by_index:
            return None
        choices = [self._by_index[index] for index in sorted(self._by_index)]
        if len(choices) == 1:
            return dict(choices[0])
        summed = {name: _summed(name, choices) for name in choices[0]}
        summed["choices"] = [{"index": index, **self._by_index[index]} for index in sorted(self._by_index)]
        return summed


collector: ContextVar[Collector | None] = ContextVar("dlm_collector", default=None)


def refuse(error: RequestError) -> ValueError:
    """The exception that SGLang answers with a 400 on every route; our layer answers with the error itself."""
    current = collector.get()
    if current is not None:
        current.refusal = error
    return ValueError(str(error))


def record_output(output: object) -> None:
    """Take the statistics out of what SGLang's front end yields: a choice, or a list of choices."""
    current = collector.get()
    if current is None:
        return
    for position, choice in enumerate(output if isinstance(output, list) else [output]):
        if not isinstance(choice, Mapping):
            continue
        meta_info = choice.get("meta_info")
        stats = meta_info.get(STATS_KEY) if isinstance(meta_info, Mapping) else None
        if isinstance(stats, Mapping):
            index = choice.get("index", position)
            current.record(index if isinstance(index, int) else position, stats)


def add_to_json(body: bytes, current: Collector) -> bytes:
    """The response body with the summary as its last key; as it came if it is not a JSON object."""
    return _with_last_key(body, current.summary())


def add_to_events(chunk: bytes, current: Collector) -> bytes:
    """A piece of an event stream, with the statistics of a choice in the event that finishes it."""
    if not _FINISHED.search(chunk) or not chunk.endswith(b"\n\n"):
        return chunk
    return b"".join(_event(event, current) + b"\n\n" for event in chunk[:-2].split(b"\n\n"))


def _event(event: bytes, current: Collector) -> bytes:
    if not event.startswith(b"data: {") or not _FINISHED.search(event):
        return event
    try:
        choices = orjson.loads(event[len(b"data: ") :]).get("choices")
        finished = [choice["index"] for choice in choices if choice.get("finish_reason")]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return event
    return _with_last_key(event, current.of_choice(finished[0])) if len(finished) == 1 else event


def _with_last_key(text: bytes, stats: Stats | None) -> bytes:
    stripped = text.rstrip()
    if not stats or not stripped.endswith(b"}"):
        return text
    return b"".join([stripped[:-1], b',"', STATS_KEY.encode(), b'":', orjson.dumps(stats), b"}"])


def _summed(name: str, choices: list[Stats]) -> object:
    values = [choice.get(name) for choice in choices]
    if name in _MEANS:
        weights = [_count(choice.get(_MEANS[name])) for choice in choices]
        total = sum(weights)
        weighted = sum(_count(value) * weight for value, weight in zip(values, weights, strict=True))
        return weighted / total if total else 0.0
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return sum(_count(value) for value in values)
    return values[0] if all(value == values[0] for value in values) else values


def _count(value: object) -> int | float:
    return value if isinstance(value, int | float) else 0
