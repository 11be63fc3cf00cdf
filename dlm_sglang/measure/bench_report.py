"""The plots and the HTML report of a bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlm_sglang.measure import bench_text
from dlm_sglang.measure.bench import Row
from dlm_sglang.measure.plots import bench as plots
from dlm_sglang.measure.plots import style
from dlm_sglang.measure.report import Report
from dlm_sglang.measure.store import Results

DEFINITIONS = (
    "tok/s: completion tokens of all requests over the time from the first send to the last answer; median of the "
    "repetitions, ± half their range.",
    "tok/s a user: completion tokens of a request over its latency, mean over requests.",
    "TTFT: sending to the first chunk with text. Chunk gap: between chunks with text. ms/token: time after the first "
    "chunk over the tokens after the first; blocks arrive in bursts, so both gaps are told. All are medians.",
    "TPF: tokens that decode forwards emitted over those forwards, sums over all requests, denoise and commit forwards "
    "counted, prefill not. TPF denoise leaves commit forwards out, as papers do.",
    "accepted: tokens per block, the bonus token included. forwards/block: denoise and commit forwards.",
    "good/s: requests per second that met every target that was set.",
)


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw what the rows allow; returns the files."""
    written = []
    for name, made in _figures(rows).items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made)
        written.append(path)
    return written


def write_html(rows: Sequence[Row], results: Results, path: Path) -> None:
    """One self-contained file."""
    report = Report(f"Bench of {results.equal['model']}")
    report.paragraph(provenance(results), "note")
    for name, png in _figures(rows).items():
        report.heading(name.replace("-", " ").capitalize())
        report.image(png, name)
    report.heading("Numbers")
    report.table(*bench_text.as_table(rows))
    report.bullets(DEFINITIONS, "note")
    report.write(path)


def provenance(results: Results) -> str:
    """What was measured on what, in a line."""
    server, client = results.about.get("server"), results.about.get("client")
    words = [f"{name}: {value}" for name, value in results.equal.items() if name not in ("what", "targets") and value]
    if isinstance(server, Mapping):
        words.append(f"server: {server.get('version') or 'unknown version'} on {server.get('device') or '?'}")
    if isinstance(client, Mapping):
        words.append(f"measured from: {client.get('processor')}, {client.get('cores')} cores")
    return ". ".join(words) + "."


def _figures(rows: Sequence[Row]) -> dict[str, bytes]:
    shown = [row for row in rows if not row.refused]
    if not shown:
        return {}
    made = {"throughput-over-latency": style.png(plots.throughput_over_latency(shown))}
    if len({row.pattern.concurrency for row in shown} - {None}) > 1:
        made["throughput-over-load"] = style.png(plots.throughput_over_load(shown))
    return made
