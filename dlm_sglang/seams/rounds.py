"""One decode round on the device: plan, forward, advance; as it is, or padded to a bucket and captured as a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from dlm_kernels.ops.advance_rows import RowHints
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from torch import Tensor

from dlm_sglang.decode.buckets import Bucket, bucket_of, pad_layout
from dlm_sglang.decode.controlled import RoundControls
from dlm_sglang.decode.layout import RoundLayout
from dlm_sglang.decode.plan_cpu import kv_slots_on_cpu, plan_round_on_cpu
from dlm_sglang.decode.round import RoundInputs, RoundOutputs, advance_round, plan_round
from dlm_sglang.decode.state import PADDING_SLOT, BlockState
from dlm_sglang.seams.batch import DlmForwardInput

logger = logging.getLogger(__name__)


class RoundRunner:
    """Runs rounds of a model; nothing in here reads the device, unless a row has a grammar.

    The model is called directly, as SGLang's graph runners do while they capture: its eager runner would first
    copy every input.
    """

    def __init__(self, model_runner: Any, state: BlockState, algorithm: Any) -> None:
        self.model_runner = model_runner
        self.state = state
        self._is_cpu = state.device.type == "cpu"
        # One for all rounds: most of its hundred fields never change.
        self._forward_batch = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=0,
            input_ids=None,
            req_pool_indices=None,
            seq_lens=None,
            out_cache_loc=None,
            seq_lens_sum=None,
            seq_lens_cpu=None,
            spec_algorithm=algorithm,
            capture_hidden_mode=DlmForwardInput.capture_hidden_mode,
            return_hidden_states_before_norm=False,
        )

    def run(
        self,
        slots: Tensor,
        seq_lens: Tensor,
        layout: RoundLayout,
        *,
        may_cut: bool,
        max_kv_len: int,
        controls: RoundControls | None = None,
        is_padded: bool = False,
    ) -> RoundOutputs:
        """Plan a round of `[R]` rows, run its forward and advance every row.

        Args:
            slots, seq_lens: `[R]` int64.
            layout: of these rows.
            may_cut: see `plan_round`.
            max_kv_len: upper bound of the rows' key lengths.
            controls: what some rows ask for beyond sampling.
            is_padded: the round has a bucket's shape, and runs on a CPU as it does in a graph.
        """
        if controls is not None:
            controls.fill(self.state, slots, seq_lens)
        # A CPU runs padded rounds as a GPU runs all: that is what they are there for.
        on_cpu = self._is_cpu and not is_padded
        plan, kv_slots_of = (plan_round_on_cpu, kv_slots_on_cpu) if on_cpu else (plan_round, _kv_slots)
        inputs = plan(self.state, layout, slots, seq_lens, may_cut=may_cut)
        kv_slots = kv_slots_of(inputs, self.model_runner.req_to_token_pool.req_to_token)
        if controls is not None:
            controls.begin(self.state, inputs)
        return advance_round(self.state, inputs, self._forward(inputs, kv_slots, max_kv_len), controls)

    def _forward(self, inputs: RoundInputs, kv_slots: Tensor, max_kv_len: int) -> Tensor:
        """Logits `[T, V]`; keys and values go to `kv_slots [T]`."""
        backend = self.model_runner.attn_backend
        forward_batch = self._batch_of(inputs, kv_slots, DlmForwardInput(inputs, max_kv_len))
        with forward_context(ForwardContext(attn_backend=backend)):
            backend.init_forward_metadata(forward_batch)
            output = self.model_runner.model.forward(inputs.input_ids, inputs.positions, forward_batch)
        logits: Tensor = output.next_token_logits
        return logits

    def _batch_of(self, inputs: RoundInputs, kv_slots: Tensor, spec_info: DlmForwardInput) -> ForwardBatch:
        """SGLang's form of the forward."""
        batch = self._forward_batch
        batch.batch_size = inputs.layout.num_rows
        batch.input_ids, batch.positions, batch.out_cache_loc = inputs.input_ids, inputs.positions, kv_slots
        batch.req_pool_indices, batch.seq_lens = inputs.slots, inputs.seq_lens
        batch.spec_info = spec_info
        return batch


def _kv_slots(inputs: RoundInputs, req_to_token: Tensor) -> Tensor:
    """The KV slots `[T]` int64 of a round's query tokens."""
    kv_slots = req_to_token[inputs.layout.per_token(inputs.slots), inputs.positions].long()
    return kv_slots if inputs.is_padding is None else torch.where(inputs.is_padding, PADDING_SLOT, kv_slots)


@dataclass(frozen=True)
class _Padded:
    """The inputs of one bucket at fixed addresses, and how to run them."""

    slots: Tensor
    seq_lens: Tensor
    layout: RoundLayout
    replay: Callable[[], RoundOutputs]


class PaddedRounds:
    """Rounds padded to buckets, so that each shape is captured once and replayed.

    Forward, choice of tokens and every row's next phase are in the same graph. Where there is no CUDA device the
    padded rounds run as they are: slower than unpadded ones, and the same arithmetic as on the GPU.
    """

    def __init__(self, runner: RoundRunner, buckets: Sequence[Bucket]) -> None:
        self._runner = runner
        self._buckets = tuple(buckets)
        self._padded: dict[Bucket, _Padded] = {}
        self._last: tuple[RoundLayout, Bucket, RoundLayout] | None = None
        self._memory_pool: Any = None

    def capture(self) -> None:
        """Prepare every bucket, largest first, so that smaller graphs reuse the memory of larger ones.

        All on one stream: the allocator gives memory back to the stream that had it. SGLang's context makes
        collectives of tensor parallelism fit for capture.
        """
        is_cuda = self._runner.state.device.type == "cuda"
        with graph_capture() if is_cuda else nullcontext() as context:
            for bucket in reversed(self._buckets):
                self._padded[bucket] = self._prepare(bucket, context.stream if context else None)
        logger.info("decode rounds prepared for %d shapes of up to %d tokens", len(self._buckets), self._max_tokens)

    @property
    def _max_tokens(self) -> int:
        return max((bucket.num_tokens for bucket in self._buckets), default=0)

    def run(self, slots: Tensor, seq_lens: Tensor, layout: RoundLayout) -> RoundOutputs | None:
        """Run a round in its bucket; None where it is too large for any."""
        if self._last is None or self._last[0] is not layout:
            bucket = bucket_of(layout, self._buckets)
            if bucket is None:
                return None
            self._last = (layout, bucket, pad_layout(layout, bucket))
            _copy_tensors(self._last[2], self._padded[bucket].layout)
        _, bucket, _ = self._last
        padded = self._padded[bucket]
        num_rows = layout.num_rows
        padded.slots[:num_rows].copy_(slots)
        padded.slots[num_rows:].fill_(PADDING_SLOT)
        padded.seq_lens[:num_rows].copy_(seq_lens)
        padded.seq_lens[num_rows:].fill_(0)
        outputs = padded.replay()
        # Clones: the next replay writes to the same addresses, perhaps before these reached the host.
        return RoundOutputs(
            outputs.token_ids[:num_rows, : layout.max_width].clone(),
            outputs.accept_lens[:num_rows].clone(),
            outputs.new_seq_lens[:num_rows].clone(),
            None if outputs.is_denoise is None else outputs.is_denoise[:num_rows].clone(),
        )

    def _prepare(self, bucket: Bucket, stream: Any) -> _Padded:
        device = self._runner.state.device
        slots = torch.full((bucket.num_rows,), PADDING_SLOT, dtype=torch.int64, device=device)
        layout = _own_tensors(pad_layout(_no_rows(bucket, device), bucket))
        seq_lens = torch.zeros_like(slots)

        def body() -> RoundOutputs:
            context_length = self._runner.state.context_length
            return self._runner.run(slots, seq_lens, layout, may_cut=True, max_kv_len=context_length, is_padded=True)

        return _Padded(slots, seq_lens, layout, body if stream is None else self._captured(body, stream))

    def _captured(self, body: Callable[[], RoundOutputs], stream: Any) -> Callable[[], RoundOutputs]:
        # Kernels compile and libraries make their workspaces outside of the graph.
        body()
        body()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory_pool, stream=stream):
            outputs = body()
        self._memory_pool = graph.pool()

        def replay() -> RoundOutputs:
            graph.replay()
            return outputs

        return replay


def _no_rows(bucket: Bucket, device: torch.device) -> RoundLayout:
    """A layout without rows, to be padded."""
    ids = torch.empty(0, dtype=torch.int64, device=device)
    return RoundLayout(
        widths=ids.int(),
        max_width=bucket.max_width,
        num_tokens=0,
        is_uniform=False,
        row_of_token=ids,
        offset_of_token=ids,
        token_index=ids.view(0, 1).expand(0, bucket.max_width),
        is_autoregressive=bucket.is_autoregressive,
        may_sample=True,
        may_draft=not bucket.is_autoregressive,
        ranks_masks=True,
        hints=RowHints(is_autoregressive=bucket.is_autoregressive),
    )


def _tensors_of(layout: RoundLayout) -> dict[str, Tensor]:
    values = {field.name: getattr(layout, field.name) for field in fields(layout)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _own_tensors(layout: RoundLayout) -> RoundLayout:
    """The layout with tensors of its own, at addresses that stay."""
    own: dict[str, Any] = {name: value.clone() for name, value in _tensors_of(layout).items()}
    return replace(layout, **own)


def _copy_tensors(source: RoundLayout, target: RoundLayout) -> None:
    for name, value in _tensors_of(source).items():
        getattr(target, name).copy_(value)
