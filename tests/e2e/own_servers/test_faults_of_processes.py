"""Faults that end a server: each is told to the clients, and all of it ends, so that a supervisor can start it again.

And those that keep one from starting: each says why. The table of all faults is in docs/faults.md.
"""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
import pytest
from safetensors.torch import load_file, save_file

from dlm_sglang.measure.server import free_port
from tests.e2e.asks import MODES
from tests.e2e.faults import CHAT, Clients, body, family_of, gone, texts
from tests.e2e.server import START_TIMEOUT_S, Server, serve_command, start_server, wait_for

FLAGS = ("--", "--max-total-tokens", "12000")
# SGLang looks once a second whether its processes live.
MAX_GONE_S = 30.0
# Above every file that the server writes to beside its log.
DISK_BYTES = 4 << 20
LONG = [(mode, 3000) for mode in MODES] * 2


def serve(checkpoint: Path, log_file: Path) -> Server:
    return start_server(checkpoint, log_file, FLAGS, {}, serve_command)


def refusal(checkpoint: Path, port: int) -> tuple[int, str, float]:
    """Exit status and output of a `dlm-sglang serve` that must end by itself, and the seconds that it took."""
    begin = time.monotonic()
    done = subprocess.run(
        serve_command(checkpoint, port, FLAGS),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
        start_new_session=True,
    )
    assert "The server is fired up" not in done.stdout
    return done.returncode, done.stdout, time.monotonic() - begin


def kill_and_see(server: Server, part: str) -> None:
    """Kill one of the server's processes under load; clients are told, and within seconds nothing of it is left."""
    family = family_of(server)
    assert set(family) == {"http", "scheduler", "detokenizer"}
    clients = Clients(server, LONG)
    family[part].send_signal(signal.SIGKILL)
    seconds = gone(server, family, MAX_GONE_S)
    outcomes = clients.outcomes()
    # A supervisor starts again what ended like this.
    assert server.process.returncode != 0
    # No client waits for ever, and none takes what it got for the whole answer.
    assert {one.is_lost for one in outcomes} == {True}, outcomes
    assert max(one.seconds for one in outcomes) < 90
    print(f"{part} killed: all gone after {seconds:.1f} s")


def test_a_killed_scheduler_ends_the_server_and_a_second_one_on_its_port_ends_at_once(
    checkpoint: Path, tmp_path: Path
) -> None:
    server = serve(checkpoint, tmp_path / "server.log")
    try:
        status, output, seconds = refusal(checkpoint, int(server.url.rpartition(":")[2]))
        assert status == 2
        assert "is in use by another process" in output
        assert seconds < 20
        assert [server.post(CHAT, body(mode, 4)).status_code for mode in MODES] == [200] * len(MODES)
        kill_and_see(server, "scheduler")
    finally:
        server.stop()


def test_a_killed_detokenizer_ends_the_server(checkpoint: Path, tmp_path: Path) -> None:
    server = serve(checkpoint, tmp_path / "server.log")
    try:
        kill_and_see(server, "detokenizer")
    finally:
        server.stop()


def test_a_full_disk_for_the_log_stops_nothing_and_a_killed_http_process_ends_the_server(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The disk is a limit on the size of files, which every process of the server gets once it runs."""
    log_file, port = tmp_path / "server.log", free_port()
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            serve_command(checkpoint, port, FLAGS), stdout=log, stderr=log, start_new_session=True
        )
    server = Server(process, log_file, f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: is_ready(server), START_TIMEOUT_S, lambda: "the server did not start")
        usual = texts(server)
        with log_file.open("ab") as log:
            log.write(b"\n" * (DISK_BYTES - log_file.stat().st_size))
        limit_files(server, DISK_BYTES)
        assert texts(server) == usual
        assert server.post(CHAT, body(MODES[0], -1)).status_code == 400
        assert server.get("/health").status_code == 200
        assert server.get("/metrics/").status_code == 200
        assert log_file.stat().st_size == DISK_BYTES, "there was room for the log, so this test shows nothing"
        limit_files(server, resource.RLIM_INFINITY)
        assert texts(server) == usual
        assert log_file.stat().st_size > DISK_BYTES, "the log did not go on when there was room again"
        kill_and_see(server, "http")
    finally:
        server.stop()


def limit_files(server: Server, num_bytes: int) -> None:
    for member in family_of(server).values():
        member.rlimit(psutil.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def is_ready(server: Server) -> bool:
    assert server.is_alive(), f"the server ended with status {server.process.returncode}"
    try:
        return server.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def test_a_checkpoint_that_was_cut_short_is_refused_at_once_by_name_and_size(broken: Path) -> None:
    file = broken / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size // 2)
    status, output, seconds = refusal(broken, free_port())
    assert status == 1
    assert f"error: {file} has {size // 2} bytes, its header tells of {size}" in output
    assert seconds < 20


def misshapen(file: Path, names: Sequence[str]) -> None:
    tensors = load_file(file)
    for name in names:
        tensors[name] = tensors[name][:, :-8].contiguous()
    save_file(tensors, file)


def test_a_checkpoint_of_wrong_shapes_is_refused_by_tensor_and_shape(broken: Path) -> None:
    misshapen(broken / "model.safetensors", ["encoder.layers.0.mlp.down_proj.weight"])
    status, output, _ = refusal(broken, free_port())
    assert status != 0
    told = "the checkpoint does not match its config.json: 1 misshapen: encoder.layers.0.mlp.down_proj.weight: "
    assert told + "expected [" in "\n".join(output.splitlines()[-8:])
