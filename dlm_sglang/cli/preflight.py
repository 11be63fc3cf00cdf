"""What can be seen to be wrong in milliseconds, before a server spends its start on it."""

from __future__ import annotations

import errno
import json
import socket
import struct
from pathlib import Path
from typing import cast

from dlm_sglang.errors import CheckpointError, SettingsError

_HEADER_LENGTH_BYTES = 8
_INDEX_NAME = "model.safetensors.index.json"


def check_port(host: str, port: int) -> None:
    """Refuse a port that another process listens on.

    SGLang finds out after the whole start, having sent its warm-up requests to the other server.

    Raises:
        SettingsError: the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        # A host that means nothing here is for SGLang to refuse.
        return
    for family, kind, protocol, _, address in found[:1]:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise SettingsError(
                        f"{host}:{port} is in use by another process",
                        setting="port",
                        code="port-in-use",
                        hint="stop it, or choose another --port",
                    ) from None


def check_weight_files(folder: Path) -> None:
    """Refuse a checkpoint of which a file is missing or cut short, as after an interrupted download.

    Args:
        folder: the checkpoint's folder; anything that is none is left to SGLang.

    Raises:
        CheckpointError: names the file, and its size where that is wrong.
    """
    index_file = folder / _INDEX_NAME
    names = {path.name for path in folder.glob("*.safetensors")}
    if index_file.is_file():
        try:
            names |= set(cast(dict[str, dict[str, str]], json.loads(index_file.read_bytes()))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index_file} cannot be read: {error}", code="checkpoint-cut-short") from None
    for name in sorted(names):
        _check_size(folder / name)


def _check_size(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing", code="checkpoint-cut-short")
    size, expected = file.stat().st_size, _size_in_header(file)
    if size != expected:
        told = "no readable header" if expected is None else f"its header tells of {expected}"
        raise CheckpointError(
            f"{file} has {size} bytes, {told}", code="checkpoint-cut-short", hint="fetch the file again"
        )


def _size_in_header(file: Path) -> int | None:
    """Bytes that a safetensors file must have, or None where its header is cut short itself."""
    with file.open("rb") as opened:
        start = opened.read(_HEADER_LENGTH_BYTES)
        if len(start) < _HEADER_LENGTH_BYTES:
            return None
        (header_bytes,) = struct.unpack("<Q", start)
        if header_bytes > file.stat().st_size:
            return None
        try:
            header = cast(dict[str, dict[str, list[int]]], json.loads(opened.read(header_bytes)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None
    return _HEADER_LENGTH_BYTES + int(header_bytes) + max(ends, default=0)
