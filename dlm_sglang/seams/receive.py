"""What a scheduler iteration spends on finding that no request has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq


def pull_when_there(original: Callable[..., list[Any] | None], receiver: Any) -> list[Any] | None:
    """Pull from SGLang's sockets if something has come; to ask costs a fifth of failing to receive from both.

    Ranks without sockets, and ways to receive that are not sockets, are left to SGLang.
    """
    requests, calls = receiver.recv_from_tokenizer, receiver.recv_from_rpc
    are_sockets = isinstance(requests, zmq.Socket) and isinstance(calls, zmq.Socket)
    if are_sockets and not zmq.zmq_poll([(requests, zmq.POLLIN), (calls, zmq.POLLIN)], 0):
        return []
    return original(receiver)
