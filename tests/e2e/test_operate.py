"""What operators point at a server: health check, smoke test, dashboard and alert rules; the real one answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dlm_sglang.param_table import GenerationMode
from tests.e2e.asks import AUTOREGRESSIVE, Ask
from tests.e2e.server import Server, wait_for

DEPLOY = Path(__file__).parents[2] / "deploy"


def series_in(text: str) -> set[str]:
    """Names of the series that a query asks for, without their histogram suffix."""
    names = set(re.findall(r"\bdlm_\w+", text)) | {f"sglang:{name}" for name in re.findall(r"sglang\[:_\](\w+)", text)}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def exported(server: Server) -> dict[str, set[str]]:
    """Series on `/metrics`, each with its label names."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([a-z][\w:]*)(?:\{(.*)\})? ", server.get("/metrics/").text, re.MULTILINE):
        bare = re.sub(r"_(bucket|sum|count)$", "", name)
        found.setdefault(bare, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.fixture
def used_server(front_server: Server, prompts: list[tuple[int, ...]]) -> Server:
    """One that has answered, refused and been left: then every series is there."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 1 + 2?"}], "max_tokens": 8}
    assert front_server.post("/v1/chat/completions", chat).is_success
    assert front_server.post("/v1/chat/completions", {**chat, "block_length": 999}).status_code == 400
    body = Ask(prompt_ids=prompts[0], policy=AUTOREGRESSIVE, max_new_tokens=3000, ignore_eos=True).body(stream=True)
    with httpx.stream("POST", f"{front_server.url}/generate", json=body, timeout=60) as response:
        next(response.iter_lines())
    wait_for(lambda: "dlm_aborted_forwards_total" in exported(front_server), 30, lambda: "the abort was not counted")
    front_server.wait_idle()
    return front_server


def test_every_series_of_dashboard_and_rules_is_exported(used_server: Server) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "dlm.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    wanted = {name for query in asked for name in series_in(query)}
    assert len(wanted) > 10
    assert wanted - set(exported(used_server)) == set()


def test_every_series_of_ours_that_is_exported_is_shown(used_server: Server) -> None:
    text = (DEPLOY / "grafana" / "dashboards" / "dlm.json").read_text()
    ours = {name.removesuffix("_created") for name in exported(used_server) if name.startswith("dlm_")}
    assert ours - series_in(text) == set()


def test_health_check_passes_and_is_left_out_of_the_metrics(front_server: Server) -> None:
    before = front_server.get("/metrics/").text
    port = front_server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-I", DEPLOY / "healthcheck.py"],
        env={"DLM_PORT": port},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")

    def ours(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("dlm_")]

    assert ours(front_server.get("/metrics/").text) == ours(before)


def test_smoke_passes(front_server: Server) -> None:
    done = subprocess.run(
        [DEPLOY / "smoke.sh", front_server.url],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") == 2 + 3 * len(GenerationMode)
