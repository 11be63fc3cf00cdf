"""A sweep over loads: numbers add up, nothing finished is lost, and the table can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlm_sglang.cli.main import main
from dlm_sglang.errors import SettingsError
from dlm_sglang.measure import bench, bench_text
from dlm_sglang.measure.bench import BenchPlan, rows_of, run_bench
from dlm_sglang.measure.bench_report import write_html, write_plots
from dlm_sglang.measure.client import ServerGone
from dlm_sglang.measure.drive import Pattern
from dlm_sglang.measure.grid import make_grid
from dlm_sglang.measure.metrics import Targets
from dlm_sglang.measure.plots import bench as plots
from dlm_sglang.measure.prompts import load_prompts
from dlm_sglang.measure.store import read_results
from tests.unit.measure.conftest import NUM_TOKENS, FakeServer


def plan_of(fake: FakeServer, **changes: object) -> BenchPlan:
    defaults: dict[str, object] = {
        "settings": make_grid(["autoregressive", "diffusion", "self_speculation"]),
        "patterns": [Pattern(concurrency=1), Pattern(concurrency=2)],
        "repetitions": 2,
        "requests": 2,
        "rounds": 1,
        "targets": Targets(latency_ms=1e6),
    }
    return BenchPlan(url=fake.url, prompts=load_prompts("bundled", 16), **{**defaults, **changes})  # type: ignore[arg-type]


def test_a_sweep_measures_every_cell_and_its_numbers_are_the_servers(fake: FakeServer, tmp_path: Path) -> None:
    said: list[str] = []
    store = run_bench(plan_of(fake), tmp_path / "bench.jsonl", said.append)
    rows = rows_of(store.lines)
    assert [(row.setting, row.pattern.concurrency) for row in rows] == [
        (mode, users) for users in (1, 2) for mode in ("autoregressive", "diffusion", "self_speculation")
    ]
    assert all(row.repetitions == 2 for row in rows)
    assert [row.median("tpf") for row in rows[:3]] == [1.0, NUM_TOKENS / 2, NUM_TOKENS / 4]
    assert rows[2].median("tpf_denoise") == NUM_TOKENS / 2
    assert rows[0].median("tpf_denoise") is None
    assert rows[2].median("accept_length") == NUM_TOKENS / 2
    assert rows[2].median("forwards_per_block") == 2
    assert rows[0].median("good_share") == 1
    assert rows[0].median("query_tokens_per_token") == 1
    assert len(said) == 12
    assert fake.flushes == 12


def test_a_server_that_dies_loses_nothing_finished_and_the_sweep_resumes(fake: FakeServer, tmp_path: Path) -> None:
    out, plan = tmp_path / "bench.jsonl", plan_of(fake)
    fake.answers_until_death = 13
    with pytest.raises(ServerGone, match="during: ") as raised:
        run_bench(plan, out, lambda _: None)
    assert "--resume" in str(raised.value.hint)
    finished = read_results(out).lines
    assert 0 < len(finished) < 12
    fake.answers_until_death = None
    with pytest.raises(SettingsError, match="exists"):
        run_bench(plan, out, lambda _: None)
    said: list[str] = []
    store = run_bench(plan, out, said.append, resume=True)
    assert tuple(store.lines[: len(finished)]) == finished
    assert len(store.lines) == 12
    assert said[0].startswith(f"{len(finished)} of 12 measurements")


def test_a_mode_that_the_server_refuses_is_noted_and_the_rest_is_measured(fake: FakeServer, tmp_path: Path) -> None:
    fake.refused_mode = "diffusion"
    store = run_bench(plan_of(fake, repetitions=1), tmp_path / "bench.jsonl", lambda _: None)
    refused = [row.setting for row in rows_of(store.lines) if row.refused]
    assert refused == ["diffusion", "diffusion"]
    head, lines = bench_text.as_table(rows_of(store.lines))
    assert {len(line) for line in lines} == {len(head)}


def test_plots_and_report_are_written_and_need_no_network(fake: FakeServer, tmp_path: Path) -> None:
    store = run_bench(plan_of(fake), tmp_path / "bench.jsonl", lambda _: None)
    rows = rows_of(store.lines)
    files = write_plots(rows, tmp_path / "plots")
    assert [path.name for path in files] == ["throughput-over-latency.png", "throughput-over-load.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 150_000 for path in files)
    write_html(rows, read_results(store.path), tmp_path / "bench.html")
    page = (tmp_path / "bench.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace(fake.url, "")


def test_the_command_prints_json_on_stdout_and_progress_on_stderr(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "--url", fake.url, "--modes", "ar", "--concurrency", "1", "--requests", "2", "--repeats", "1"]
    argv += ["--only-rates", "--rates", "100", "--out", str(tmp_path / "b.jsonl"), "--json"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)
    assert (row["setting"], row["rate_s"], row["numbers"]["tpf"]["median"]) == ("autoregressive", 100.0, 1.0)
    assert printed.err.startswith("[1/1] autoregressive, 100 arrivals/s, repetition 1: ")
    assert main(argv) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "b.jsonl")]) == 1
    assert capsys.readouterr().err.startswith("error: no answer from http://127.0.0.1:9")
    assert not (tmp_path / "b.jsonl").exists()


def test_warm_up_never_exceeds_the_concurrency(fake: FakeServer, tmp_path: Path) -> None:
    plan = plan_of(fake, repetitions=1, patterns=[Pattern(concurrency=20)], settings=make_grid(["ar"]))
    run_bench(plan, tmp_path / "b.jsonl", lambda _: None)
    assert len(fake.bodies) == 20 + bench.WARM_UP_REQUESTS


def test_finished_runs_are_put_together_without_a_server(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, mode in zip(files, ("ar", "diffusion"), strict=True):
        run_bench(plan_of(fake, settings=make_grid([mode])), path, lambda _: None)
    assert main(["bench", "--compare", *map(str, files), "--html", str(tmp_path / "b.html")]) == 0
    printed = capsys.readouterr().out
    assert "autoregressive" in printed
    assert "diffusion" in printed
    other = tmp_path / "c.jsonl"
    run_bench(plan_of(fake, sampling={"temperature": 1}), other, lambda _: None)
    assert main(["bench", "--compare", str(files[0]), str(other)]) == 2
    assert "they differ in sampling" in capsys.readouterr().err


def row(setting: str, tok_s: float, *, concurrency: int | None = None, rate_s: float | None = None) -> bench.Row:
    numbers = {"tok_s": (tok_s, tok_s, tok_s), "user_tok_s": (1.0, 1.0, 1.0)}
    return bench.Row(setting, Pattern(concurrency, rate_s), 1, numbers)


def test_ar_overtakes_between_the_loads_where_the_lines_cross() -> None:
    rows = [row("autoregressive", speed, concurrency=users) for users, speed in ((1, 100), (8, 500), (32, 1600))]
    rows += [row("diffusion block 16", speed, concurrency=users) for users, speed in ((1, 300), (8, 900), (32, 1200))]
    rows += [row("self_speculation", 2000, concurrency=users) for users in (1, 8, 32)]
    assert plots.crossovers(rows) == {"diffusion block 16": pytest.approx(8 + 24 * 400 / 800)}


def test_the_envelope_is_the_best_that_auto_may_choose() -> None:
    rows = [row("autoregressive", speed, concurrency=users) for users, speed in ((1, 100), (32, 1600))]
    rows += [row("self_speculation block 8", speed, concurrency=users) for users, speed in ((1, 300), (32, 1200))]
    rows += [row("diffusion", 9000, concurrency=users) for users in (1, 32)]
    assert plots.envelope(rows) == {}
    rows += [row("auto", speed, concurrency=users) for users, speed in ((1, 290), (32, 1500))]
    assert plots.envelope(rows) == {1: 300, 32: 1600}
    labels = plots.throughput_over_load(rows).axes[0].get_legend_handles_labels()[1]
    assert plots.ENVELOPE in labels


def test_arrivals_and_users_are_lines_of_their_own() -> None:
    rows = [row("autoregressive", 1, concurrency=1), row("autoregressive", 1, rate_s=2.0)]
    assert [name for name, _, _ in plots._lines(rows)] == ["autoregressive", "autoregressive, arrivals"]
    plots.throughput_over_latency(rows)
