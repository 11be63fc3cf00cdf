"""The dashboard and the alert rules ask for series that we have, and leave none of ours out."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from dlm_sglang.api.metric_table import SERIES, Kind
from dlm_sglang.param_table import GenerationMode

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
RULES_TEXT = (DEPLOY / "prometheus" / "rules.yml").read_text()
RULES = [rule for group in yaml.safe_load(RULES_TEXT)["groups"] for rule in group["rules"]]
SUFFIXES = ("_bucket", "_sum", "_count")
# A test that every series is shown fails on a new one until it has a panel, or a line here with the reason.
NOT_SHOWN: dict[str, str] = {}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_dashboard", DEPLOY / "grafana" / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dashboard(script: ModuleType) -> dict[str, Any]:
    return dict(json.loads(script.TARGET.read_text()))


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def ours(query: str) -> dict[str, set[str]]:
    """Our series in a query, each with the labels that it is filtered or grouped by there."""
    grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
    found = {}
    for name, labels in re.findall(r"\b(dlm_\w+)(?:\{([^}]*)\})?", query):
        found[name] = grouped | set(re.findall(r"(\w+)=", labels))
    return found


def test_file_is_what_the_script_writes(script: ModuleType) -> None:
    assert script.TARGET.read_text() == script.text(), "run python deploy/grafana/dashboard.py"


@pytest.mark.parametrize("source", ["dashboard", "rules"])
def test_every_series_of_ours_exists_with_its_labels(dashboard: dict[str, Any], source: str) -> None:
    asked = queries(dashboard) if source == "dashboard" else [rule["expr"] for rule in RULES]
    known = {series.name: {*series.labels} for series in SERIES if series.kind is not Kind.HISTOGRAM}
    for series in SERIES:
        if series.kind is Kind.HISTOGRAM:
            known |= {series.name + suffix: {*series.labels, "le"} for suffix in SUFFIXES}
    wrong = [
        f"{name} has no label {label}" if name in known else f"there is no {name}"
        for query in asked
        for name, labels in ours(query).items()
        for label in labels - {"service", "instance"}
        if label not in known.get(name, set())
    ]
    assert wrong == []
    assert any(ours(query) for query in asked)


def test_every_series_of_ours_is_shown(dashboard: dict[str, Any]) -> None:
    shown = {name for query in queries(dashboard) for name in ours(query)}
    shown = {next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name) for name in shown}
    assert {series.name for series in SERIES} - shown == set(NOT_SHOWN)


def test_rules_name_modes_that_exist() -> None:
    named = set(re.findall(r'mode="(\w+)"', RULES_TEXT))
    assert named
    assert named <= set(GenerationMode)


def test_every_alert_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "operating.md").read_text()
    assert [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in guide] == []


def test_panels_do_not_overlap_and_stay_on_the_grid(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_provisioned_datasource_and_folder_are_those_of_compose() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dlm.yml").read_text())["providers"]
    compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert any(port.endswith(":9090") for port in compose["prometheus"]["ports"])
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["grafana"]["volumes"]


def test_prometheus_takes_the_files() -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [tool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
