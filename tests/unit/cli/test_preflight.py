"""What is refused before a server is started."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from dlm_sglang.cli.main import main
from dlm_sglang.cli.preflight import check_port, check_weight_files
from dlm_sglang.errors import CheckpointError, SettingsError
from dlm_sglang.setting_table import BUNDLED_PATH


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_PATH, tmp_path / "checkpoint"))


def test_a_free_port_and_one_that_was_just_given_up_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listening.accept()[0].close()
    check_port("127.0.0.1", port)
    check_port("no.such.host.invalid", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_refused(host: str) -> None:
    with socket.create_server((host, 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(SettingsError, match=f"{host}:{port} is in use") as caught:
            check_port(host, port)
    assert caught.value.exit_status == 2


def test_serve_refuses_a_taken_port_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert main(["serve", "--port", str(listening.getsockname()[1])]) == 2
    assert "is in use by another process\n\nhint: stop it, or choose another --port" in capsys.readouterr().err


def test_a_whole_checkpoint_passes_and_a_name_of_a_hub_is_not_looked_at(folder: Path) -> None:
    check_weight_files(folder)
    check_weight_files(Path("nvidia/some-checkpoint"))


@pytest.mark.parametrize("num_bytes", [0, 5, 100, 3_000_000])
def test_a_file_cut_short_anywhere_is_named_with_its_size(folder: Path, num_bytes: int) -> None:
    file = folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(num_bytes)
    with pytest.raises(CheckpointError, match=f"{file} has {num_bytes} bytes") as caught:
        check_weight_files(folder)
    assert caught.value.code == "checkpoint-cut-short"


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        check_weight_files(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_an_index_cut_short_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json cannot be read"):
        check_weight_files(folder)
