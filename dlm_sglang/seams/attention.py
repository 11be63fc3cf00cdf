"""SGLang attention backend for every row kind of a mixed forward: one per-token `kv_limit`."""

from __future__ import annotations

from typing import Any

import torch
from dlm_kernels.ops.block_attention import BlockAttentionPlan, block_attention, make_plan
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from dlm_sglang.seams.batch import DlmForwardInput


class DlmAttentionBackend(AttentionBackend):
    """Writes the round's K/V into the rows' slots, then reads everything paged (architecture section 4.3)."""

    # Lengths of a round's rows are known on the device only; the host would have to wait for them.
    needs_cpu_seq_lens = False

    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        self.req_to_token = model_runner.req_to_token_pool.req_to_token
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.page_size = model_runner.page_size
        self.forward_metadata: BlockAttentionPlan | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Lay the forward out once for all layers; a decode round's lengths stay on the device."""
        spec_info = forward_batch.spec_info
        if isinstance(spec_info, DlmForwardInput):
            inputs = spec_info.inputs
            self.forward_metadata = make_plan(
                inputs.layout.widths,
                inputs.kv_lens.int(),
                inputs.kv_limit.int(),
                inputs.slots,
                self.req_to_token,
                max_row_len=inputs.layout.max_width,
                max_kv_len=spec_info.max_kv_len,
                page_size=self.page_size,
            )
            return
        row_lens, kv_lens, kv_limit = _host_layout(forward_batch)
        device = self.req_to_token.device
        self.forward_metadata = make_plan(
            torch.tensor(row_lens, dtype=torch.int32).to(device, non_blocking=True),
            torch.tensor(kv_lens, dtype=torch.int32).to(device, non_blocking=True),
            kv_limit,
            forward_batch.req_pool_indices.long(),
            self.req_to_token,
            max_row_len=max(row_lens),
            max_kv_len=max(kv_lens),
            page_size=self.page_size,
        )

    def support_triton(self) -> bool:
        """False: position helpers on CPU must take SGLang's torch path."""
        return bool(self.req_to_token.is_cuda)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend for prefill rows and for mixed decode rounds."""
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        assert self.forward_metadata is not None, "init_forward_metadata runs before the first layer"
        out = block_attention(
            q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            pool.get_key_buffer(layer.layer_id),
            pool.get_value_buffer(layer.layer_id),
            self.forward_metadata,
            layer.scaling,
        )
        return out.reshape(-1, layer.tp_q_head_num * layer.v_head_dim)

    # One query token per row is just the shortest block.
    forward_decode = forward_extend


def create_backend(model_runner: Any) -> DlmAttentionBackend:
    """Factory that SGLang's registry calls with its `ModelRunner`."""
    return DlmAttentionBackend(model_runner)


def _host_layout(forward_batch: Any) -> tuple[list[int], list[int], torch.Tensor]:
    """Row lengths, key lengths and per-token limits of a prefill, or of plain SGLang's decode."""
    seq_lens_cpu = forward_batch.seq_lens_cpu
    seq_lens = (forward_batch.seq_lens if seq_lens_cpu is None else seq_lens_cpu).tolist()
    if forward_batch.forward_mode.is_decode():
        return [1] * len(seq_lens), seq_lens, forward_batch.seq_lens
    return list(forward_batch.extend_seq_lens_cpu), seq_lens, forward_batch.positions + 1
