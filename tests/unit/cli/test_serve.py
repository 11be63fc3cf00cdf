"""`dlm-sglang serve` up to the point where SGLang takes over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_sglang.cli import serve
from dlm_sglang.cli.devices import num_cuda_devices
from dlm_sglang.cli.main import main
from dlm_sglang.setting_table import BUNDLED_PATH, SETTING_BY_NAME
from dlm_sglang.settings import resolve

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTING_BY_NAME.values():
        monkeypatch.delenv(setting.variable, raising=False)


def plan(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[list[str], dict[str, str]]:
    assert main(["serve", "--dry-run", "--json", *argv]) == 0
    printed = json.loads(capsys.readouterr().out)
    return printed["argv"], printed["env"]


def value_of(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_serve_starts_sglangs_own_launcher_on_the_bundled_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    argv, env = plan(capsys)
    assert argv[:3] == [sys.executable, "-m", "sglang.launch_server"]
    assert value_of(argv, "--speculative-algorithm") == "DLM"
    assert value_of(argv, "--model-path") == str(BUNDLED_PATH)
    assert value_of(argv, "--speculative-num-draft-tokens") == "32"
    assert env["DLM_DEFAULT_GENERATION_MODE"] == "self_speculation"
    assert env["DLM_DEFAULT_BLOCK_LENGTH"] == "null"


def test_decode_variables_say_what_the_flags_said(capsys: pytest.CaptureFixture[str]) -> None:
    argv, env = plan(capsys, "--max-block-length", "16", "--default-generation-mode", "ar")
    assert value_of(argv, "--speculative-num-draft-tokens") == env["DLM_MAX_BLOCK_LENGTH"] == "16"
    assert env["DLM_DEFAULT_GENERATION_MODE"] == "autoregressive"


def test_arguments_after_the_dashes_go_to_sglang(capsys: pytest.CaptureFixture[str]) -> None:
    argv, _ = plan(capsys, "--port", "1", "--", "--enable-metrics", "--port", "2")
    assert argv[-3:] == ["--enable-metrics", "--port", "2"]


@pytest.mark.parametrize(
    ("on_cpu", "model", "dtype"),
    [(True, "bundled", "float32"), (False, "bundled", "auto"), (True, "/some/checkpoint", "auto")],
)
def test_cpu_has_its_flags_and_the_bundled_checkpoint_its_dtype(on_cpu: bool, model: str, dtype: str) -> None:
    argv = serve.launch_argv(resolve({"model_path": model}, {}, {}), [], on_cpu=on_cpu)
    assert value_of(argv, "--dtype") == dtype
    assert ("--device" in argv) is on_cpu
    assert ("nld-bundled" in argv) is (model == "bundled")


def test_the_key_is_never_printed(capsys: pytest.CaptureFixture[str]) -> None:
    argv, _ = plan(capsys, "--api-key", "s3cret")
    assert value_of(argv, "--api-key") == "(set)"
    resolved = resolve({"api_key": "s3cret"}, {}, {})
    real = serve.launch_argv(resolved, [], on_cpu=True)
    assert value_of(real, "--api-key") == "s3cret"
    assert "s3cret" not in serve.startup_block(resolved, real)


def test_the_startup_block_shows_every_setting_and_its_source() -> None:
    resolved = resolve({"port": "1234"}, {}, {})
    block = serve.startup_block(resolved, ["python"])
    assert all(name in block for name in resolved)
    assert "1234  (flag)" in block


@pytest.mark.parametrize("name", ["bundled", "nld-3b", "nld-8b", "nld-14b"])
def test_shipped_configs_are_accepted(capsys: pytest.CaptureFixture[str], name: str) -> None:
    argv, _ = plan(capsys, "--config", str(CONFIGS / f"{name}.yaml"))
    assert "--model-path" in argv


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "did you mean port?"),
        ("- a", "must hold a mapping"),
        ("a: [", "cannot read"),
        ("port: x", "got 'x'"),
    ],
)
def test_a_bad_config_ends_with_status_2_and_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["serve", "--dry-run", "--config", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err


def test_an_empty_config_and_a_missing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert main(["serve", "--dry-run", "--config", str(tmp_path / "empty.yaml")]) == 0
    assert main(["serve", "--dry-run", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_contradicting_defaults_are_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--max-block-length", "8", "--default-block-length", "16"]) == 2
    assert "default_block_length must be in 2..8" in capsys.readouterr().err


def test_serve_becomes_the_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, argv: started.append([path, *argv]))
    monkeypatch.setattr(serve, "_version", lambda name: "0")
    monkeypatch.setenv("DLM_MAX_BLOCK_LENGTH", "16")
    main(["serve"])
    assert started[0][0] == started[0][1] == sys.executable
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "max_block_length" in printed.err


def test_a_missing_sglang_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve, "_version", lambda name: "not installed")
    assert main(["serve"]) == 2
    assert "make serve" in capsys.readouterr().err


def test_devices_are_counted_without_torch() -> None:
    code = "import sys; from dlm_sglang.cli.devices import num_cuda_devices as n; n(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert num_cuda_devices() >= 0


@pytest.mark.parametrize("command", [["--help"], ["serve", "--help"], ["params", "--json"], ["serve", "--dry-run"]])
def test_light_commands_load_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys, dlm_sglang\nfrom dlm_sglang.cli.main import main\n"
        f"try: main({command!r})\nexcept SystemExit: pass\n"
        "sys.stderr.write(','.join({'torch', 'triton', 'sglang', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout
