"""What a decode round spends in SGLang's loop and need not: short cuts are taken where it is safe, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from sglang.srt.managers.scheduler_components.output_streamer import DEFAULT_FORCE_STREAM_INTERVAL
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from dlm_sglang.seams.batch import DlmRoundState, leave_batch_as_it_is
from dlm_sglang.seams.receive import pull_when_there
from dlm_sglang.seams.results import _speaks


def _batch(mode: ForwardMode, spec_info: object) -> SimpleNamespace:
    return SimpleNamespace(forward_mode=mode, spec_info=spec_info)


@pytest.mark.parametrize(
    ("batch", "overlap", "is_copied"),
    [
        (_batch(ForwardMode.DECODE, DlmRoundState(32)), False, False),
        (_batch(ForwardMode.DECODE, DlmRoundState(32)), True, True),
        (_batch(ForwardMode.EXTEND, DlmRoundState(32)), False, True),
        (_batch(ForwardMode.DECODE, None), False, True),
    ],
    ids=["our decode round", "overlapped", "prefill", "another algorithm's"],
)
def test_batch_is_copied_unless_our_round_runs_alone(batch: SimpleNamespace, overlap: bool, is_copied: bool) -> None:
    copies = []

    @contextmanager
    def isolation(scheduler: object, batch: object, *, overlap: bool) -> Iterator[None]:
        copies.append(batch)
        yield

    with leave_batch_as_it_is(isolation, None, batch, overlap=overlap):
        pass
    assert bool(copies) == is_copied


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """A pair of receiving sockets as SGLang has them, and the other end of the first."""
    context = zmq.Context()
    pull, dealer, push = (context.socket(kind) for kind in (zmq.PULL, zmq.DEALER, zmq.PUSH))
    pull.bind(f"ipc://{tmp_path}/requests")
    dealer.bind(f"ipc://{tmp_path}/calls")
    push.connect(f"ipc://{tmp_path}/requests")
    yield pull, dealer, push
    context.destroy(linger=0)


def test_receiving_is_left_out_only_while_nothing_has_come(sockets: tuple[Any, Any, Any]) -> None:
    pull, dealer, push = sockets
    receiver = SimpleNamespace(recv_from_tokenizer=pull, recv_from_rpc=dealer)
    received: list[object] = []

    def pull_raw(receiver: Any) -> list[Any]:
        received.append(receiver.recv_from_tokenizer.recv_pyobj())
        return received

    assert pull_when_there(pull_raw, receiver) == []
    assert received == []
    push.send_pyobj("a request")
    pull.poll(5_000)
    assert pull_when_there(pull_raw, receiver) == ["a request"]
    assert pull_when_there(pull_raw, receiver) == []
    assert received == ["a request"]


def test_ranks_without_sockets_receive_as_sglang_does() -> None:
    receiver = SimpleNamespace(recv_from_tokenizer=None, recv_from_rpc=None)
    assert pull_when_there(lambda _: None, receiver) is None
    fields = SchedulerRequestReceiver.__dataclass_fields__
    assert {"recv_from_tokenizer", "recv_from_rpc"} <= set(fields)


@pytest.mark.parametrize(
    ("is_streamed", "num_tokens", "num_sent", "is_finished", "speaks"),
    [
        (False, DEFAULT_FORCE_STREAM_INTERVAL - 1, 0, False, False),
        (False, DEFAULT_FORCE_STREAM_INTERVAL, 0, False, True),
        (False, 3, 0, True, True),
        (True, 3, 2, False, True),
        (True, 3, 3, False, False),
    ],
)
def test_who_is_streamed(is_streamed: bool, num_tokens: int, num_sent: int, is_finished: bool, speaks: bool) -> None:
    req = SimpleNamespace(
        finished=lambda: is_finished,
        stream=is_streamed,
        output_ids=list(range(num_tokens)),
        send_token_offset=num_sent,
        dlm=None,
    )
    assert _speaks(req) == speaks
