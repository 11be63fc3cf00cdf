"""The chart, rendered by Helm's own engine and checked against Kubernetes' schemas; no cluster is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlm_sglang.api.metric_table import SERIES_BY_NAME
from dlm_sglang.param_table import GenerationMode
from dlm_sglang.setting_table import SETTING_BY_NAME
from dlm_sglang.settings import DecodeSettings, resolve

HELM = Path(__file__).parents[3] / "deploy" / "helm"
CHART = HELM / "dlm-sglang"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
KUBERNETES = "1.30"
EVERYTHING: dict[str, Any] = {
    "autoscaling": {"enabled": True},
    "minAvailable": 1,
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "router": {"enabled": True},
    "apiKey": {"existingSecret": "keys"},
    "env": [{"name": "DLM_LOG_LEVEL", "value": "warning"}],
    "imagePullSecrets": [{"name": "pull"}],
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "podAnnotations": {"team": "serving"},
}
GPU = yaml.safe_load((CHART / "values-gpu.yaml").read_text())
CASES = {"defaults": {}, "everything": EVERYTHING, "gpu": GPU}

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")


def rendered(values: dict[str, Any], name: str = "demo") -> list[dict[str, Any]]:
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name=name, namespace="serving")
    return [thing for text in files.values() for thing in yaml.safe_load_all(text) if thing]


def only(things: list[dict[str, Any]], kind: str, name: str = "demo") -> dict[str, Any]:
    (thing,) = [one for one in things if one["kind"] == kind and one["metadata"]["name"] == name]
    return thing


def pod(things: list[dict[str, Any]], name: str = "demo") -> dict[str, Any]:
    return dict(only(things, "Deployment", name)["spec"]["template"]["spec"])


def test_chart_has_no_lint() -> None:
    told = helm.lint(str(CHART))
    assert told["errors"] == []
    assert [message["error"] for message in told["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", CASES.values(), ids=list(CASES))
def test_everything_rendered_is_of_kubernetes_schema(values: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for thing in rendered(values):
        if thing["kind"] != "ServiceMonitor":  # a resource of the Prometheus operator
            validate.validate(thing, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"replica": 2}, "replica"),
        ({"settings": {"api_key": "in the open"}}, "api_key"),
        ({"router": {"policy": "clever"}}, "policy"),
        ({"drainTimeoutS": 0}, "drainTimeoutS"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], word: str) -> None:
    with pytest.raises(helm.HelmError, match=word):
        rendered(values)


@pytest.mark.parametrize("values", CASES.values(), ids=list(CASES))
def test_settings_are_ones_that_the_server_takes(values: dict[str, Any]) -> None:
    file = yaml.safe_load(only(rendered(values), "ConfigMap", "demo-settings")["data"]["config.yaml"])
    resolved = resolve({}, {}, file, "config.yaml")
    DecodeSettings.from_resolved(resolved).limits()
    assert resolved["drain_timeout_s"].value == VALUES["drainTimeoutS"]
    assert resolved["host"].value == "0.0.0.0"
    assert resolved["enable_metrics"].value is True
    for variable in pod(rendered(values))["containers"][0]["env"]:
        if variable["name"].startswith("DLM_"):
            assert variable["name"] in {setting.variable for setting in SETTING_BY_NAME.values()}


@pytest.mark.parametrize("values", CASES.values(), ids=list(CASES))
def test_pods_are_not_root_and_write_only_where_they_must(values: dict[str, Any]) -> None:
    things = rendered(values)
    for name in {thing["metadata"]["name"] for thing in things if thing["kind"] == "Deployment"}:
        spec = pod(things, name)
        assert spec["securityContext"]["runAsNonRoot"] is True
        (container,) = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable <= {"/tmp", "/home/dlm", "/dev/shm"}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("drain_s", [1, 45, 900])
def test_kubernetes_waits_longer_than_the_server_drains(drain_s: int) -> None:
    spec = pod(rendered({"drainTimeoutS": drain_s, "preStopS": 7}))
    assert spec["terminationGracePeriodSeconds"] >= drain_s + 7 + 30
    assert spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]


def test_probes_generate_at_the_start_and_stop_traffic_while_draining() -> None:
    (container,) = pod(rendered({"probes": {"startupS": 95}}))["containers"]
    startup = container["startupProbe"]
    assert startup["exec"]["command"][-1] == "/opt/dlm/healthcheck.py"
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 95
    # The script gives up before Kubernetes does, to say why.
    assert startup["timeoutSeconds"] > 22
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"


def test_other_settings_make_other_pods() -> None:
    sums = {
        only(rendered(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        for values in ({}, {"settings": {"max_block_length": 16}}, {"replicas": 3})
    }
    assert len(sums) == 2


def test_autoscaler_asks_for_metrics_that_exist_for_every_mode() -> None:
    metrics = only(rendered(EVERYTHING), "HorizontalPodAutoscaler")["spec"]["metrics"]
    asked = [metric["pods"]["metric"] for metric in metrics]
    modes = {metric["selector"]["matchLabels"]["mode"] for metric in asked if "selector" in metric}
    assert modes == set(GenerationMode)
    adapter = yaml.safe_load((HELM / "prometheus-adapter-values.yaml").read_text())["rules"]["custom"]
    given = {rule.get("name", {}).get("as") or re.split(r"\{", rule["seriesQuery"])[0] for rule in adapter}
    assert {metric["name"] for metric in asked} == given
    assert {name for name in given if name in SERIES_BY_NAME} == {"dlm_requests_in_flight"}
    assert "sglang[:_]num_queue_reqs" in adapter[0]["seriesQuery"]
    assert "replicas" not in only(rendered(EVERYTHING), "Deployment")["spec"]


def test_router_finds_the_servers_and_nothing_else() -> None:
    things = rendered(EVERYTHING)
    arguments = pod(things, "demo-router")["containers"][0]["args"]
    selector = dict(word.split("=") for word in arguments[arguments.index("--selector") + 1 :])
    labels = only(things, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    router = only(things, "Deployment", "demo-router")["spec"]["template"]["metadata"]["labels"]
    assert not selector.items() <= router.items()
    assert only(things, "Role", "demo-router")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]


def test_key_comes_from_a_secret_only() -> None:
    (variable,) = [one for one in pod(rendered(EVERYTHING))["containers"][0]["env"] if one["name"] == "DLM_API_KEY"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "api-key"}
    assert all(one["name"] != "DLM_API_KEY" for one in pod(rendered({}))["containers"][0]["env"])


def test_network_lets_in_only_the_servers_port_and_nothing_out() -> None:
    policy = only(rendered({}), "NetworkPolicy")["spec"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": 30000}]]
    assert policy["egress"] == []
