"""Write `dashboards/dlm.json`, the Grafana dashboard of the per-mode series.

    python deploy/grafana/dashboard.py

Only the standard library. A test fails when the file is stale, or when a series of the dashboard is not exported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "dlm.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
ROW_HEIGHT = 8
OURS = '{service=~"$service", mode=~"$mode"}'
ANY_MODE = '{service=~"$service"}'
Query = tuple[str, str]
Panel = dict[str, Any]


def rate(series: str, by: str, labels: str = OURS) -> str:
    """Growth of a counter per second, summed over everything but `by`."""
    return f"sum by ({by}) (rate({series}{labels}[$__rate_interval]))"


def ratio(above: str, below: str, by: str = "mode") -> str:
    """One counter's growth over another's."""
    return f"{rate(above, by)} / {rate(below, by)}"


def mean(histogram: str) -> str:
    """Mean of a histogram's observations by mode."""
    return ratio(f"{histogram}_sum", f"{histogram}_count")


def sglang(name: str) -> str:
    """A series of SGLang's.

    Its name is `sglang:NAME` to Prometheus 3 and `sglang_NAME` to Prometheus 2, which cannot say that it takes colons.
    """
    return f'{{__name__=~"sglang[:_]{name}", service=~"$service"}}'


def quantiles(histogram: str) -> list[Query]:
    """Median and 95th percentile of a histogram of SGLang's, over all servers shown."""
    growth = rate(sglang(f"{histogram}_bucket"), "le", "")
    return [(f"histogram_quantile({share}, {growth})", f"p{100 * share:.0f}") for share in (0.5, 0.95)]


def curves(title: str, about: str, queries: Sequence[Query], unit: str = "short", *, stacked: bool = False) -> Panel:
    """A panel with a line for each series of each query."""
    custom: dict[str, Any] = {"fillOpacity": 10, "lineWidth": 2, "showPoints": "never"}
    if stacked:
        custom |= {"stacking": {"mode": "normal"}, "fillOpacity": 40}
    return {
        "type": "timeseries",
        "title": title,
        "description": about,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "table", "calcs": ["lastNotNull", "mean"]}, "tooltip": {"mode": "multi"}},
        "targets": targets(queries),
    }


def heat(title: str, about: str, histogram: str) -> Panel:
    """A panel of a histogram's buckets over time."""
    made = targets([(rate(f"{histogram}_bucket", "le"), "{{le}}")])
    return {
        "type": "heatmap",
        "title": title,
        "description": about,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"calculate": False, "yAxis": {"unit": "short"}, "color": {"scheme": "Blues", "mode": "scheme"}},
        "targets": [{**target, "format": "heatmap"} for target in made],
    }


def numbers(title: str, about: str, queries: Sequence[Query], unit: str = "short") -> Panel:
    """A panel with the last value of each series in large print."""
    return {
        "type": "stat",
        "title": title,
        "description": about,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "area"},
        "targets": targets(queries),
    }


def targets(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Grafana's form of queries, each given with its legend."""
    return [
        {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend}
        for number, (expression, legend) in enumerate(queries)
    ]


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            numbers("Servers up", "Servers that answer Prometheus.", [('sum(up{job="dlm-sglang"})', "up")]),
            numbers(
                "Open requests",
                "Taken and not ended yet, waiting ones included.",
                [(f"sum by (mode) (dlm_requests_in_flight{OURS})", "{{mode}}")],
            ),
            numbers(
                "Running and waiting",
                "As SGLang's scheduler counts them.",
                [
                    (f"sum({sglang('num_running_reqs')})", "running"),
                    (f"sum({sglang('num_queue_reqs')})", "waiting"),
                ],
            ),
            numbers("KV pool", "Share in use.", [(f"max({sglang('token_usage')})", "used")], "percentunit"),
        ),
    ),
    (
        "Modes: how much",
        (
            curves(
                "Tokens per second",
                "Tokens of ended choices, as usage bills them.",
                [(rate("dlm_output_tokens_total", "mode"), "{{mode}}")],
            ),
            curves(
                "Choices ended per second",
                "By mode and by why they ended.",
                [(rate("dlm_requests_total", "mode, finish_reason"), "{{mode}}, {{finish_reason}}")],
                "reqps",
            ),
            curves(
                "Open requests: the mode mix",
                "Taken and not ended yet, waiting ones included.",
                [(f"sum by (mode) (dlm_requests_in_flight{OURS})", "{{mode}}")],
                stacked=True,
            ),
        ),
    ),
    (
        "Modes: how well",
        (
            curves(
                "Tokens per forward",
                "All tokens over all decode forwards. 1 is autoregressive; below 2, drafting hardly pays.",
                [(ratio("dlm_output_tokens_total", "dlm_forwards_total"), "{{mode}}")],
            ),
            curves(
                "Accept length",
                "Mean tokens that a block gave, over ended choices.",
                [(mean("dlm_accept_length"), "{{mode}}")],
            ),
            curves(
                "Denoise forwards per block",
                "Mean over ended choices; in diffusion mode the dial between speed and quality.",
                [(mean("dlm_denoising_steps_per_block"), "{{mode}}")],
            ),
        ),
    ),
    (
        "Modes: spread over requests (choose one mode above)",
        (
            heat("Tokens per forward", "Ended choices by their mean.", "dlm_tokens_per_forward"),
            heat("Accept length", "Ended choices by their mean.", "dlm_accept_length"),
            heat("Denoise forwards per block", "Ended choices by their mean.", "dlm_denoising_steps_per_block"),
        ),
    ),
    (
        "Modes: what it cost",
        (
            curves(
                "Forwards per second",
                "Denoise and commit forwards that ended choices took part in.",
                [(rate("dlm_forwards_total", "mode, kind"), "{{mode}}, {{kind}}")],
            ),
            curves("Blocks per second", "Blocks that emitted.", [(rate("dlm_blocks_total", "mode"), "{{mode}}")]),
            curves(
                "Wasted on aborted choices",
                "Share of forwards and of tokens that nobody got.",
                [
                    (ratio("dlm_aborted_forwards_total", "dlm_forwards_total"), "{{mode}}, forwards"),
                    (ratio("dlm_aborted_output_tokens_total", "dlm_output_tokens_total"), "{{mode}}, tokens"),
                ],
                "percentunit",
            ),
            curves(
                "Refused per second",
                "Requests that were refused before decoding, by the code of the error.",
                [(rate("dlm_refused_requests_total", "code", ANY_MODE), "{{code}}")],
                "reqps",
            ),
        ),
    ),
    (
        "What auto chose",
        (
            curves(
                "Blocks per second by length",
                "Of ended choices under auto; 1 is a token decoded alone.",
                [(rate("dlm_auto_blocks_total", "block_length", ANY_MODE), "{{block_length}}")],
                stacked=True,
            ),
            curves(
                "Reasons",
                "Ended choices by the reason of their last block length.",
                [(rate("dlm_auto_choices_total", "reason", ANY_MODE), "{{reason}}")],
            ),
            curves(
                "Expected time of a round",
                "As learnt, if all requests under auto had that length.",
                [(f"max by (block_length) (dlm_auto_round_seconds{ANY_MODE})", "{{block_length}}")],
                "s",
            ),
            curves(
                "Expected tokens per second",
                "Of the whole batch, if all requests under auto had that length.",
                [(f"max by (block_length) (dlm_auto_expected_tokens_per_second{ANY_MODE})", "{{block_length}}")],
            ),
        ),
    ),
    (
        "SGLang, all modes together",
        (
            curves(
                "Running and waiting requests",
                "As SGLang's scheduler counts them.",
                [
                    (f"sum by (service) ({sglang('num_running_reqs')})", "{{service}}, running"),
                    (f"sum by (service) ({sglang('num_queue_reqs')})", "{{service}}, waiting"),
                ],
            ),
            curves(
                "Time to first token",
                "Over all requests.",
                quantiles("time_to_first_token_seconds"),
                "s",
            ),
            curves(
                "Request latency",
                "From arrival to the last token.",
                quantiles("e2e_request_latency_seconds"),
                "s",
            ),
            curves(
                "KV pool and prefix cache",
                "Share of the pool in use; share of prompt tokens found in the cache.",
                [
                    (f"max by (service) ({sglang('token_usage')})", "{{service}}, pool used"),
                    (f"max by (service) ({sglang('cache_hit_rate')})", "{{service}}, cache hits"),
                ],
                "percentunit",
            ),
        ),
    ),
)


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice of label values above the dashboard."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    """The whole dashboard as Grafana imports it."""
    panels: list[Panel] = []
    top = 0
    for title, row in ROWS:
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place})
        width, height = WIDTH // len(row), ROW_HEIGHT // 2 if title == "Now" else ROW_HEIGHT
        for number, panel in enumerate(row):
            place = {"x": number * width, "y": top + 1, "w": width, "h": height}
            panels.append({**panel, "datasource": DATASOURCE, "gridPos": place})
        top += 1 + height
    source = {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
    return {
        "uid": "dlm-sglang",
        "title": "dlm-sglang: generation modes",
        "tags": ["dlm-sglang"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                source,
                variable("service", "Service", 'label_values(up{job="dlm-sglang"}, service)'),
                variable("mode", "Mode", "label_values(dlm_requests_in_flight, mode)"),
            ]
        },
        "annotations": {"list": []},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
