"""`auto` beside fixed block lengths on a simulated GPU: the server's own controller, a roofline for the time.

Nothing here ran on a GPU. Rounds take what `plan/roofline.py` computes for the device's attainable rates; drafts are
confirmed by chance, at the published accept lengths, with requests that are easier and harder. The controller knows
neither: it starts empty and learns from the rounds, as in a server.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dlm_sglang.decode.auto.assign import AUTOREGRESSIVE, Others
from dlm_sglang.decode.auto.controller import AutoController, Load
from dlm_sglang.decode.auto.round_time import RoundShape
from dlm_sglang.decode.auto.row import STANDARD_LENGTHS, AutoRow
from dlm_sglang.measure.modes import command_of
from dlm_sglang.measure.plan import roofline
from dlm_sglang.measure.plan.gpu import find_gpu
from dlm_sglang.measure.plan.shape import BYTES_OF_DTYPE, load_shape
from dlm_sglang.measure.table import render

AUTO = "auto"
ANSWER_TOKENS = 256
# Requests are easier and harder to draft for: spread of the logarithm of their factor on the hazard.
SPREAD = 0.4
# Rounds of one shape do not take the same time each.
NOISE = 0.03
GENERATIONS, FEWEST_REQUESTS = 6, 64


@dataclass
class _Request:
    """One row: what is left of its answer, the block that it is in, whether it was drafted."""

    rng: random.Random
    factor: float
    left: int
    length: int
    row: AutoRow | None
    emitted: int = 0
    is_drafted: bool = False


@dataclass(frozen=True)
class SimulatedCell:
    """One load of one model.

    Attributes:
        tok_s: by setting: a block length in words, or `auto`; from the first round on, learning included.
        ratio: `auto` over the best fixed setting.
        ratio_learnt: the same over the second half of the requests, when the first ones were learnt from.
        blocks: share of query tokens that `auto` spent by block length.
    """

    model: str
    context: int
    concurrency: int
    tok_s: Mapping[str, float]
    best_fixed: str
    ratio: float
    ratio_learnt: float
    blocks: Mapping[int, float]


@dataclass
class Simulation:
    """A server with a number of users who each send the next request when they have their answer.

    Args:
        seconds_of: time of a round by rows, query tokens and keys.
        accept_lengths: published, by block length.
        controller: chooses the block lengths; None keeps `block_length`.
    """

    concurrency: int
    prompt_tokens: int
    seconds_of: Callable[[int, int, int], float]
    hazard: Sequence[float]
    block_length: int = AUTOREGRESSIVE
    controller: AutoController | None = None
    seed: int = 0
    rng: random.Random = field(init=False)
    num_requests: int = 0
    elapsed_s: float = 0.0
    num_tokens: int = 0
    late_tok_s: float = 0.0
    spent: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"rounds-{self.seed}")

    def run(self, num_requests: int) -> float:
        """Tokens per second until so many requests ended; `late_tok_s` is that of the second half of them."""
        half: tuple[int, float] | None = None
        running = [self._request() for _ in range(self.concurrency)]
        has_changed, ended = True, 0
        while ended < num_requests:
            if self.controller is not None:
                self._choose(running, self.controller, has_changed=has_changed)
            widths = [request.row.launch() if request.row else request.length for request in running]
            self._time(running, sum(widths))
            for request in running:
                self._advance(request)
            done = [number for number, request in enumerate(running) if request.left <= 0]
            for number in done:
                running[number] = self._request()
            ended += len(done)
            if half is None and 2 * ended >= num_requests:
                half = self.num_tokens, self.elapsed_s
            has_changed = bool(done)
        tokens, seconds = half or (0, 0.0)
        self.late_tok_s = (self.num_tokens - tokens) / (self.elapsed_s - seconds)
        return self.num_tokens / self.elapsed_s

    def _request(self) -> _Request:
        # The same requests whatever the setting.
        rng = random.Random(f"request-{self.seed}-{self.num_requests}")
        self.num_requests += 1
        left = max(1, round(ANSWER_TOKENS * rng.uniform(0.5, 1.5)))
        factor = math.exp(rng.gauss(0.0, SPREAD))
        lengths = tuple(length for length in STANDARD_LENGTHS)
        row = None if self.controller is None else AutoRow(lengths)
        return _Request(rng, factor, left, AUTOREGRESSIVE if row else self.block_length, row)

    def _choose(self, running: list[_Request], controller: AutoController, *, has_changed: bool) -> None:
        rows = [request.row for request in running if request.row is not None]
        decision = None
        if controller.is_due(rows, has_changed=has_changed):
            decision = controller.decide(Load(rows, len(rows), Others(), self._num_kv_tokens(running)))
        for number, is_resized in controller.apply(rows, decision):
            if is_resized:
                running[number].length = rows[number].target

    def _num_kv_tokens(self, running: list[_Request]) -> int:
        return sum(self.prompt_tokens + request.emitted for request in running)

    def _time(self, running: list[_Request], num_tokens: int) -> None:
        num_kv_tokens = self._num_kv_tokens(running)
        seconds = self.seconds_of(len(running), num_tokens, num_kv_tokens) * (1 + abs(self.rng.gauss(0.0, NOISE)))
        self.elapsed_s += seconds
        if self.controller is not None:
            self.controller.observe_round(RoundShape(len(running), num_tokens, num_kv_tokens), seconds)

    def _advance(self, request: _Request) -> None:
        self.spent[request.length] = self.spent.get(request.length, 0) + request.length
        is_denoise = request.length > AUTOREGRESSIVE and not request.is_drafted
        request.is_drafted = is_denoise
        won = 0
        if not is_denoise:
            won = min(self._accepted(request), request.left)
            request.emitted, request.left = request.emitted + won, request.left - won
            self.num_tokens += won
        if request.row is None or self.controller is None:
            return
        _, verified = request.row.processed(is_denoise=is_denoise)
        if verified:
            self.controller.observe_block(request.row, verified, won)
        request.length = request.row.current

    def _accepted(self, request: _Request) -> int:
        for position in range(request.length - 1):
            if request.rng.random() < 1 - (1 - self.hazard[position]) ** request.factor:
                return position + 1
        return request.length


def hazard_of(accept_lengths: Mapping[int, float]) -> list[float]:
    """The chance of failure at each draft position that gives these accept lengths, constant between them."""
    hazard: list[float] = []
    tokens, alive = 1.0, 1.0
    for block_length, wanted in sorted(accept_lengths.items()):
        count = block_length - 1 - len(hazard)
        low, high = 0.0, 1.0
        for _ in range(60):
            kept = 1 - (low + high) / 2
            won = tokens + alive * sum(kept**power for power in range(1, count + 1))
            low, high = (low, (low + high) / 2) if won < wanted else ((low + high) / 2, high)
        kept = 1 - low
        tokens += alive * sum(kept**power for power in range(1, count + 1))
        alive *= kept**count
        hazard += [low] * count
    return hazard


def simulate(model: str, gpu: str, context: int, concurrency: int, seed: int = 0) -> SimulatedCell:
    """Every fixed setting and `auto` at one load."""
    shape = load_shape(model)
    rates = find_gpu(gpu).attainable()
    assert rates is not None, "a GPU of the table has rates"
    dtype_bytes = BYTES_OF_DTYPE[shape.dtype]

    def seconds_of(rows: int, num_tokens: int, num_kv_tokens: int) -> float:
        return roofline.forward_s(shape, rates, rows, num_tokens / rows, num_kv_tokens // rows, dtype_bytes)

    hazard = hazard_of(roofline.ACCEPT_LENGTHS)
    num_requests = max(FEWEST_REQUESTS, GENERATIONS * concurrency)

    def simulation(block_length: int, controller: AutoController | None = None) -> Simulation:
        return Simulation(concurrency, context, seconds_of, hazard, block_length, controller, seed)

    runs = {"AR" if length == AUTOREGRESSIVE else f"spec-{length}": simulation(length) for length in STANDARD_LENGTHS}
    tok_s = {name: run.run(num_requests) for name, run in runs.items()}
    auto = simulation(AUTOREGRESSIVE, AutoController(STANDARD_LENGTHS[-1]))
    best = max(tok_s, key=lambda name: tok_s[name])
    tok_s[AUTO] = auto.run(num_requests)
    late = auto.late_tok_s / max(run.late_tok_s for run in runs.values())
    spent = sum(auto.spent.values())
    shares = {length: round(tokens / spent, 3) for length, tokens in sorted(auto.spent.items())}
    rounded = {name: round(rate, 1) for name, rate in tok_s.items()}
    ratio = round(tok_s[AUTO] / tok_s[best], 3)
    return SimulatedCell(model, context, concurrency, rounded, best, ratio, round(late, 3), shares)


def as_table(cells: Sequence[SimulatedCell]) -> str:
    """Tokens per second by setting, and what `auto` reached of the best."""
    names = list(cells[0].tok_s)
    rows = [
        (
            cell.model,
            str(cell.context),
            str(cell.concurrency),
            *(f"{cell.tok_s[name]:.0f}" for name in names),
            cell.best_fixed,
            f"{cell.ratio:.3f}",
            f"{cell.ratio_learnt:.3f}",
            " ".join(f"{length}:{share:.0%}" for length, share in cell.blocks.items()),
        )
        for cell in cells
    ]
    return render(
        ("model", "context", "requests", *names, "best fixed", "auto/best", "second half", "query tokens"), rows, 1
    )


def main() -> int:
    """`python -m dlm_sglang.measure.auto_simulation`, behind `make simulate-auto`."""
    parser = argparse.ArgumentParser(prog="make simulate-auto", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["nld-3b", "nld-8b", "nld-14b"])
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192], help="prompt tokens")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    cells = [
        simulate(model, arguments.gpu, context, concurrency, arguments.seed)
        for model in arguments.models
        for context in arguments.contexts
        for concurrency in arguments.concurrency
    ]
    print(as_table(cells))
    print(f"smallest auto/best: {min(cell.ratio for cell in cells):.3f} (simulated, not measured)")
    if arguments.out is not None:
        report = {
            "command": command_of("dlm_sglang.measure.auto_simulation"),
            "what": "simulated on a roofline, not measured",
            "gpu": arguments.gpu,
            "accept_lengths": dict(roofline.ACCEPT_LENGTHS),
            "spread": SPREAD,
            "noise": NOISE,
            "answer_tokens": ANSWER_TOKENS,
            "cells": [asdict(cell) for cell in cells],
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
