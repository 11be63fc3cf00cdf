"""The deployment files agree with each other and with the repository; no Docker engine is needed."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from dlm_sglang.setting_table import SETTINGS

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE_TEXT = (DEPLOY / "docker-compose.yml").read_text()
SERVICES = yaml.safe_load(COMPOSE_TEXT)["services"]
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
OTHER_VARIABLES = {"DLM_BIND", "DLM_CPU_PORT", "DLM_GPU_PORT", "DLM_MODEL_DIR", "DLM_CONFIG"}


def test_cpu_service_starts_by_default_and_gpu_service_by_profile() -> None:
    assert "profiles" not in SERVICES["cpu"]
    assert SERVICES["gpu"]["profiles"] == ["gpu"]
    assert SERVICES["gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_services_can_run_side_by_side_and_listen_on_loopback_by_default() -> None:
    published = [port for service in SERVICES.values() for port in service["ports"]]
    assert len(set(published)) == len(SERVICES)
    assert all(port.startswith("${DLM_BIND:-127.0.0.1}:") and port.endswith(":30000") for port in published)


def test_build_contexts_and_dockerfiles_exist() -> None:
    for service in SERVICES.values():
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()


def test_build_arguments_are_declared_in_the_dockerfile() -> None:
    for service in SERVICES.values():
        dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
        for argument in service["build"]["args"]:
            assert re.search(rf"^ARG {argument}\b", dockerfile, re.MULTILINE)


def test_every_variable_is_explained_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    explained = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert used == explained


def test_variables_given_to_the_server_are_its_settings() -> None:
    known = {setting.variable for setting in SETTINGS}
    for service in SERVICES.values():
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
    assert text.rindex("USER dlm") < text.index("ENTRYPOINT")
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


class Health(BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    seen_key: ClassVar[str | None] = None

    def do_GET(self) -> None:
        type(self).seen_key = self.headers.get("Authorization")
        self.send_response(self.status if self.path == "/health_generate" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def health_port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def run_health_check(port: int, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", DEPLOY / "healthcheck.py"],
        env={"DLM_PORT": str(port), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1)])
def test_health_check_follows_the_server(health_port: int, status: int, exit_status: int) -> None:
    Health.status = status
    assert run_health_check(health_port, DLM_API_KEY="k").returncode == exit_status
    assert Health.seen_key == "Bearer k"


def test_health_check_says_why_it_failed() -> None:
    with HTTPServer(("127.0.0.1", 0), Health) as unused:
        port = unused.server_port
    done = run_health_check(port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"unhealthy: http://127.0.0.1:{port}/health_generate: ")
