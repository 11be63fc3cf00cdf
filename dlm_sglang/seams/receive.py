"""What a scheduler iteration spends on finding that no request has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq


def pull_when_there(original: Callable[..., list[Any] | None], receiver: Any) -> list[Any] | None:
    """Pull from SGLang's sockets if something has come; to ask costs a fifth of failing to receive from both.

    Ranks without sockets, and ways to receive that are not sockets, are left to SGLang.
    """
    sockets = (receiver.recv_from_tokenizer, receiver.recv_from_rpc)
    if all(isinstance(socket, zmq.Socket) for socket in sockets):
        waiting = zmq.zmq_poll([(socket, zmq.POLLIN) for socket in sockets], 0)
        if not waiting:
            return []
    return original(receiver)
