"""The measuring commands on the real server: they agree with it, with each other, and survive its end."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import PreTrainedTokenizerFast

from dlm_sglang.bundled.evaluate import Measurement, measure
from dlm_sglang.bundled.evaluate import settings as reference_settings
from dlm_sglang.bundled.tasks import HELD_OUT_SEED, generate
from dlm_sglang.cli.main import main
from dlm_sglang.measure.bench import BenchPlan, run_bench
from dlm_sglang.measure.client import STATS_KEY, ServerGone
from dlm_sglang.measure.drive import Pattern
from dlm_sglang.measure.evaluate import MAX_TOKENS, EvalPlan, run_eval
from dlm_sglang.measure.grid import DecodeSetting, make_grid
from dlm_sglang.measure.plan.check import TOLERANCE, compare_with_server
from dlm_sglang.measure.plan.gpu import find_gpu
from dlm_sglang.measure.plan.memory import capacity
from dlm_sglang.measure.plan.shape import load_shape
from dlm_sglang.measure.prompts import PromptSet
from dlm_sglang.measure.store import numbers_of, read_results
from dlm_sglang.reference.model import load_model
from tests.e2e.server import Server, start_server, stop_tree

NUM_TASKS = 30
GRID = [
    DecodeSetting("autoregressive"),
    DecodeSetting("self_speculation", 16),
    DecodeSetting("diffusion", 16, confidence_threshold=0.9),
]
# Steps, block length: as the rows of `make eval` are called.
REFERENCE_ROWS = {"autoregressive": ("", None), "self_speculation": ("draft 1", 16), "diffusion": ("threshold 0.9", 16)}
MEM_FRACTION, NO_CAP = 0.2, 10**8
UNCAPPED = ("--mem-fraction-static", str(MEM_FRACTION), "--max-total-tokens", str(NO_CAP))
# The host's free memory moves with every other process; a server with this has 8 GiB to itself.
FIXED_MEMORY = """
import psutil
measured = psutil.virtual_memory
def virtual_memory():
    return measured()._replace(available=(8 << 30) - psutil.Process().memory_info().rss)
psutil.virtual_memory = virtual_memory
"""
LOADED = re.compile(r"Load weight end.*avail mem=([\d.]+) GB, mem usage=([\d.]+) GB")


@pytest.fixture(scope="module")
def evaluated(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Lines of an eval of the first held-out tasks, by mode."""
    out = tmp_path_factory.mktemp("eval") / "eval.jsonl"
    store, identity = run_eval(EvalPlan(server.url, GRID, num_prompts=NUM_TASKS), out, lambda _: None)
    assert identity.block_length == 16
    return {setting.mode: dict(line) for setting, line in zip(GRID, store.lines, strict=True)}


def test_response_bench_and_eval_agree_on_what_a_forward_yields(
    server: Server, evaluated: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    tasks = generate("held-out", HELD_OUT_SEED, NUM_TASKS)
    bodies = tuple({"messages": task.messages, "max_tokens": MAX_TOKENS} for task in tasks)
    plan = BenchPlan(
        server.url, GRID, [Pattern(8)], PromptSet("held-out", bodies), repetitions=1, requests=NUM_TASKS, rounds=1
    )
    store = run_bench(plan, tmp_path / "bench.jsonl", lambda _: None)
    for setting, line in zip(GRID, store.lines, strict=True):
        responses = [
            server.post(
                "/v1/chat/completions", {**body, **setting.fields(), "model": "default", "temperature": 0}
            ).json()
            for body in bodies
        ]
        costs = [response[STATS_KEY] for response in responses]
        forwards = sum(cost["num_forwards"] for cost in costs)
        tokens = sum(round(cost["tokens_per_forward"] * cost["num_forwards"]) for cost in costs)
        blocks = sum(cost["num_blocks"] for cost in costs)
        # A numerical tie between batch sizes may turn one answer; otherwise the counts are equal.
        for numbers in (numbers_of(line), numbers_of(evaluated[setting.mode])):
            assert numbers["tpf"] == pytest.approx(tokens / forwards, rel=0.02), setting.label
            assert numbers["accept_length"] == pytest.approx(tokens / blocks, rel=0.02), setting.label
            assert numbers["num_block_tokens"] == pytest.approx(tokens, rel=0.02)
            assert numbers["output_tokens"] == pytest.approx(
                sum(response["usage"]["completion_tokens"] for response in responses), rel=0.02
            )


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Measurement]:
    """The same tasks by the scorer that `make eval` runs, without a server."""
    model = load_model(checkpoint)
    tasks = generate("held-out", HELD_OUT_SEED, NUM_TASKS)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = {(row.mode, row.steps, row.block_length): row for row in reference_settings(model.has_lora)}
    found = {
        mode: measure(model, tokenizer, tasks, rows[mode, steps, block])
        for mode, (steps, block) in REFERENCE_ROWS.items()
    }
    torch.set_num_threads(num_threads)
    return found


@pytest.mark.parametrize("mode", REFERENCE_ROWS)
def test_eval_over_http_finds_the_accuracy_of_the_scorer_without_a_server(
    evaluated: dict[str, dict[str, Any]], expected: dict[str, Measurement], mode: str
) -> None:
    line, row = evaluated[mode], expected[mode]
    assert line["hits"].count("1") / NUM_TASKS == pytest.approx(row.exact_match, abs=1.5 / NUM_TASKS)
    assert numbers_of(line)["tpf"] == pytest.approx(row.tokens_per_forward, rel=0.03)


def test_a_mode_of_the_same_answers_is_recommended_when_nothing_may_be_lost(
    evaluated: dict[str, dict[str, Any]], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["eval", "--url", server.url, "--prompts", str(NUM_TASKS), "--block-lengths", "16", "--thresholds", "0.9"]
    assert main([*argv, "--seed", "5", "--max-loss", "0", "--json", "--out", str(tmp_path / "e.jsonl")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommendation"]["fields"]["generation_mode"] in ("self_speculation", "auto")
    assert evaluated["self_speculation"]["answers"] == evaluated["autoregressive"]["answers"]


def test_a_capped_pool_is_predicted_exactly(server: Server, checkpoint: Path) -> None:
    found = compare_with_server(server.url, str(checkpoint))
    assert (found.difference, found.is_capped) == (0.0, True)


@pytest.fixture
def short_lived(checkpoint: Path, tmp_path: Path) -> Iterator[Server]:
    """A server of its own, whose KV pool is bounded by memory alone, to be ended in the middle of a sweep."""
    (tmp_path / "sitecustomize.py").write_text(FIXED_MEMORY)
    search_path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    server = start_server(checkpoint, tmp_path / "server.log", UNCAPPED, {"PYTHONPATH": search_path})
    try:
        yield server
    finally:
        server.stop()


def test_the_pool_is_predicted_and_a_killed_server_loses_no_measurement(
    short_lived: Server, server: Server, checkpoint: Path, tmp_path: Path
) -> None:
    reported = short_lived.get("/server_info").json()["max_total_num_tokens"]
    found = capacity(
        load_shape(str(checkpoint)),
        find_gpu("cpu", memory_gib=memory_free_before_loading_gib(short_lived)),
        "float32",
        MEM_FRACTION,
        max_total_tokens=NO_CAP,
    )
    assert found.kv_tokens == pytest.approx(reported, rel=TOLERANCE)
    out = tmp_path / "bench.jsonl"
    bodies = tuple({"messages": task.messages, "max_tokens": 16} for task in generate("held-out", HELD_OUT_SEED, 8))

    def plan(url: str) -> BenchPlan:
        settings = make_grid(["ar", "self_speculation"], [8, 16])
        return BenchPlan(url, settings, [Pattern(2)], PromptSet("few", bodies), repetitions=20, requests=8, rounds=1)

    killer = threading.Thread(target=_kill_after, args=(short_lived, out, 4))
    killer.start()
    with pytest.raises(ServerGone):
        run_bench(plan(short_lived.url), out, lambda _: None)
    killer.join()
    finished = read_results(out).lines
    assert 4 <= len(finished) < 60
    # The same checkpoint behind another address: the sweep goes on there.
    few = BenchPlan(**{**plan(server.url).__dict__, "repetitions": 2})
    said: list[str] = []
    store = run_bench(few, out, said.append, resume=True)
    assert tuple(store.lines[: len(finished)]) == finished
    assert {(line["key"]["setting"], line["key"]["repetition"]) for line in store.lines} >= {  # type: ignore[index]
        (setting.label, repetition) for setting in few.settings for repetition in range(2)
    }


def memory_free_before_loading_gib(server: Server) -> float:
    """As the server logged it."""
    logged = LOADED.search(server.log)
    assert logged is not None, "the server's line about loaded weights has changed"
    return float(logged[1]) + float(logged[2])


def _kill_after(server: Server, out: Path, num_lines: int) -> None:
    """End the whole server without warning once so many measurements are finished."""
    while not out.exists() or out.read_text().count("\n") <= num_lines:
        time.sleep(0.02)
    for process in psutil.Process(server.process.pid).children(recursive=True):
        process.send_signal(signal.SIGKILL)
    stop_tree(server.process.pid)


def series(server: Server, mode: str) -> dict[str, float]:
    """Our Prometheus counters of one mode, summed over their other labels; empty where the server has none."""
    response = server.get("/metrics", follow_redirects=True)
    if response.status_code != 200:
        return {}
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if sample.name.startswith("dlm_") and sample.name.endswith("_total") and mode in sample.labels.values():
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


@pytest.mark.parametrize("setting", GRID, ids=lambda setting: setting.mode)
def test_prometheus_counts_what_eval_counts(front_server: Server, tmp_path: Path, setting: DecodeSetting) -> None:
    before = series(front_server, setting.mode)
    grid = list(dict.fromkeys([GRID[0], setting]))
    store, _ = run_eval(EvalPlan(front_server.url, grid, num_prompts=8, seed=11), tmp_path / "e.jsonl", lambda _: None)
    after = series(front_server, setting.mode)
    if "dlm_forwards_total" not in after:
        pytest.skip("this server has no dlm_ series on /metrics")
    numbers = numbers_of(store.lines[-1])
    for name, counted in (
        ("dlm_forwards_total", "num_forwards"),
        ("dlm_output_tokens_total", "output_tokens"),
        ("dlm_requests_total", "requests"),
    ):
        assert after[name] - before.get(name, 0.0) == numbers[counted], name
