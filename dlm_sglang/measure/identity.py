"""Which model a running server serves, and what a result was measured on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dlm_sglang.measure.client import ServerGone

_TIMEOUT_S = 30
_VERSIONS = ("dlm-sglang", "sglang", "torch", "transformers")


@dataclass(frozen=True)
class ServerIdentity:
    """What a server says about itself; fields are empty where it does not.

    Attributes:
        model_path: the hub's name of the model, or the name of its folder; where that lies is nobody's business.
        checkpoint: digest of the checkpoint's file names, sizes and config, where its folder is on this machine.
        block_length: block size that the checkpoint was trained with, where its folder is on this machine.
    """

    model: str
    model_path: str = ""
    checkpoint: str = ""
    block_length: int | None = None
    device: str = ""
    version: str = ""


def identify(url: str, api_key: str | None = None) -> ServerIdentity:
    """Ask a server which model it serves.

    Raises:
        ServerGone: it does not answer.
    """
    models = get_json(f"{url}/v1/models", api_key).get("data")
    first = models[0] if isinstance(models, list) and models else {}
    model = str(first.get("id", "default"))
    try:
        info = get_json(f"{url}/server_info", api_key)
    except ServerGone:
        # Other servers have no such page.
        return ServerIdentity(model)
    path = str(info.get("model_path") or "")
    checkpoint, block_length = _checkpoint(Path(path))
    name = Path(path).name if Path(path).is_absolute() else path
    return ServerIdentity(
        model, name, checkpoint, block_length, str(info.get("device") or ""), str(info.get("version") or "")
    )


def get_json(url: str, api_key: str | None = None) -> dict[str, object]:
    """A JSON object from a server.

    Raises:
        ServerGone: no answer, or not such a one.
    """
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            answer = json.load(response)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ServerGone(
            f"no answer from {url}: {error}", hint="is the server up? `dlm-sglang serve` starts one"
        ) from None
    return answer if isinstance(answer, dict) else {}


def flush_cache(url: str, api_key: str | None = None) -> bool:
    """Empty the server's prefix cache; False where it has no such call."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{url}/flush_cache", method="POST", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def machine() -> dict[str, object]:
    """The machine that the load came from; the server's own where both are one."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version for name in _VERSIONS if (version := _version(name))},
    }


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _checkpoint(folder: Path) -> tuple[str, int | None]:
    config_path = folder / "config.json"
    if not config_path.is_file():
        return "", None
    config_text = config_path.read_text(encoding="utf-8")
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*.safetensors"))
    config: Mapping[str, object] = json.loads(config_text)
    block_length = config.get("block_size")
    digest = hashlib.sha256(f"{files}{config_text}".encode()).hexdigest()[:16]
    return digest, block_length if isinstance(block_length, int) else None
