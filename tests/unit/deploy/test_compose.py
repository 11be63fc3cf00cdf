"""The deployment files agree with each other and with the repository; no Docker engine is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlm_sglang.setting_table import SETTING_BY_NAME, SETTINGS

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE_TEXT = (DEPLOY / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES = COMPOSE["services"]
SERVERS = {name: SERVICES[name] for name in ("cpu", "gpu")}
WATCHERS = {name: SERVICES[name] for name in ("prometheus", "grafana")}
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
OTHER_VARIABLES = {"DLM_BIND", "DLM_CPU_PORT", "DLM_GPU_PORT", "DLM_MODEL_DIR", "DLM_CONFIG", "DLM_STOP_GRACE"}
OTHER_VARIABLES |= {f"DLM_{device}_{limit}" for device in ("CPU", "GPU") for limit in ("CPUS", "MEMORY")}


def filled_in(text: str) -> str:
    """The text as Compose sees it with no variable set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_compose_file_is_valid() -> None:
    """By a parser that refuses unknown keys; Docker's own was not at hand."""
    compose_spec = pytest.importorskip("compose_spec")
    read = yaml.safe_load(filled_in(COMPOSE_TEXT))
    for service in read["services"].values():
        limits = service["deploy"]["resources"]["limits"]
        # Compose takes text, this parser only a number with a point.
        limits["cpus"] = float(limits["cpus"])
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(read)).validate()
    read["services"]["cpu"]["red_only"] = True
    with pytest.raises(ValueError, match="red_only"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(read))


@pytest.mark.parametrize("name", [*DOCKERFILES, "Dockerfile.router"])
def test_dockerfile_is_lint_free(name: str) -> None:
    tool = Path(sys.executable).with_name("hadolint")
    if not tool.exists():
        pytest.skip("hadolint is not installed")
    linted = subprocess.run([tool, "--no-color", DEPLOY / name], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout
    assert linted.stdout == ""


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_every_service_is_hardened_and_limited(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}


def test_what_a_server_writes_to_is_writable_and_may_hold_code() -> None:
    """Compiled kernels are loaded from their cache; Docker mounts a tmpfs without exec."""
    for service in SERVERS.values():
        mounts = [*service["tmpfs"], *[text for text in service.get("volumes", []) if isinstance(text, str)]]
        assert {re.split(r":", mount.removeprefix("gpu-home:"))[0] for mount in mounts} == {"/tmp", "/home/dlm"}
        assert all(":exec," in mount for mount in service["tmpfs"])


def test_docker_waits_longer_than_the_server_drains() -> None:
    drain = SETTING_BY_NAME["drain_timeout_s"]
    for service in SERVERS.values():
        grace_s = float(filled_in(service["stop_grace_period"]).removesuffix("s"))
        drain_s = float(filled_in(service["environment"][drain.variable]))
        assert grace_s >= drain_s + 30


def test_grafana_reaches_prometheus_and_no_server() -> None:
    assert WATCHERS["grafana"]["networks"] == ["watching"]
    assert set(WATCHERS["prometheus"]["networks"]) == {"watching", "serving"}
    assert all(service["networks"] == ["serving"] for service in SERVERS.values())


def test_only_loopback_reaches_the_watchers_and_grafana_has_no_default_password() -> None:
    for service in WATCHERS.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    environment = WATCHERS["grafana"]["environment"]
    assert filled_in(environment["GF_SECURITY_ADMIN_PASSWORD"]) == ""
    assert filled_in(environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"]) == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_prometheus_scrapes_every_server_on_its_port() -> None:
    (ours,) = [
        job
        for job in yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
        if job["job_name"] == "dlm-sglang"
    ]
    (lookup,) = ours["dns_sd_configs"]
    assert set(lookup["names"]) == set(SERVERS)
    assert all(port.endswith(f":{lookup['port']}") for service in SERVERS.values() for port in service["ports"])


def test_mounted_files_exist() -> None:
    mounts = [mount for service in WATCHERS.values() for mount in service["volumes"] if mount.startswith("./")]
    assert len(mounts) == 3
    assert all((DEPLOY / mount.split(":")[0]).is_dir() and mount.endswith(":ro") for mount in mounts)
    used = {
        mount.split(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if isinstance(mount, str)
    }
    assert {name for name in used if not name.startswith(".")} == set(COMPOSE["volumes"])


def test_cpu_service_starts_by_default_and_gpu_service_by_profile() -> None:
    assert "profiles" not in SERVICES["cpu"]
    assert SERVICES["gpu"]["profiles"] == ["gpu"]
    assert SERVICES["gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_services_can_run_side_by_side_and_listen_on_loopback_by_default() -> None:
    published = [port for service in SERVERS.values() for port in service["ports"]]
    assert len(set(published)) == len(SERVERS)
    assert all(port.startswith("${DLM_BIND:-127.0.0.1}:") and port.endswith(":30000") for port in published)


def test_build_contexts_and_dockerfiles_exist() -> None:
    for service in SERVERS.values():
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()


def test_build_arguments_are_declared_in_the_dockerfile() -> None:
    for service in SERVERS.values():
        dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
        for argument in service["build"]["args"]:
            assert re.search(rf"^ARG {argument}\b", dockerfile, re.MULTILINE)


def test_every_variable_is_explained_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    explained = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert used == explained


def test_variables_given_to_the_server_are_its_settings() -> None:
    known = {setting.variable for setting in SETTINGS}
    for service in SERVERS.values():
        assert {name for name in service["environment"] if name.startswith("DLM_")} <= known
    for name in DOCKERFILES:
        assert set(re.findall(r"\b(DLM_\w+)=", (DEPLOY / name).read_text())) <= known


def test_no_variable_of_compose_is_taken_for_a_setting() -> None:
    assert {setting.variable for setting in SETTINGS} & OTHER_VARIABLES == set()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_copied_paths_exist_and_are_in_the_build_context(name: str) -> None:
    ignore_lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line.removeprefix("!") for line in ignore_lines if line.startswith("!")]
    assert ignore_lines[0] == "*"
    for line in re.findall(r"^COPY (?!--from)(.+)$", (DEPLOY / name).read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == path or source.startswith(f"{path}/") for path in let_in), source


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_does_not_run_as_root_and_has_a_health_check(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert text.rindex("USER 10001") < text.index("ENTRYPOINT")
    assert "HEALTHCHECK" in text
    config = re.search(r'CMD \["--config", "/opt/dlm/configs/(.+)"\]', text)
    assert config is not None
    assert (ROOT / "configs" / config[1]).is_file()


def test_gpu_image_is_of_the_pinned_sglang() -> None:
    pin = re.search(r"^sglang==(\S+)$", (DEPLOY / "requirements" / "gpu.txt").read_text(), re.MULTILINE)
    assert pin is not None
    for text in ((DEPLOY / "Dockerfile.gpu").read_text(), COMPOSE_TEXT, (DEPLOY / ".env.example").read_text()):
        assert re.findall(r"lmsysorg/sglang:v([\d.]+\d)", text) == [pin[1]]
    assert f"== '{pin[1]}'" in (DEPLOY / "Dockerfile.gpu").read_text()
