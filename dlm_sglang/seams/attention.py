"""SGLang attention backend for every row kind of a mixed forward: one per-token `kv_limit`."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from dlm_kernels.ops.block_attention import BlockAttentionPlan, block_attention, make_plan
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from dlm_sglang.errors import SettingsError
from dlm_sglang.seams.batch import DlmForwardInput
from dlm_sglang.settings import DecodeSettings

logger = logging.getLogger(__name__)

# Block attention for prompts too.
OWN = "block"


class DlmAttentionBackend(AttentionBackend):
    """Writes the round's K/V into the rows' slots, then reads everything paged (architecture section 4.3).

    Prompts are long and plainly causal: where SGLang has a backend that is made for them, it runs them.
    """

    # Lengths of a round's rows are known on the device only; the host would have to wait for them.
    needs_cpu_seq_lens = False

    def __init__(self, model_runner: Any, prefill_backend: AttentionBackend | None = None) -> None:
        super().__init__()
        self.prefill_backend = prefill_backend
        self.req_to_token = model_runner.req_to_token_pool.req_to_token
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.page_size = model_runner.page_size
        self.forward_metadata: BlockAttentionPlan | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Lay the forward out once for all layers; a decode round's lengths stay on the device."""
        spec_info = forward_batch.spec_info
        if isinstance(spec_info, DlmForwardInput):
            inputs = spec_info.inputs
            is_cpu = inputs.kv_lens.is_cpu
            self.forward_metadata = make_plan(
                inputs.layout.widths,
                # The kernel has 32 bits of a length; a CPU has no use for the copy.
                inputs.kv_lens if is_cpu else inputs.kv_lens.int(),
                inputs.kv_limit if is_cpu else inputs.kv_limit.int(),
                inputs.slots,
                self.req_to_token,
                max_row_len=inputs.layout.max_width,
                max_kv_len=spec_info.max_kv_len,
                page_size=self.page_size,
            )
            return
        delegate = self._delegate(forward_batch)
        if delegate is not None:
            delegate.init_forward_metadata(forward_batch)
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
        delegate = self._delegate(forward_batch)
        if delegate is not None:
            return delegate.forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
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

    def _delegate(self, forward_batch: Any) -> AttentionBackend | None:
        """The backend that runs this batch in our place."""
        is_prompt = not isinstance(forward_batch.spec_info, DlmForwardInput) and forward_batch.forward_mode.is_extend()
        return self.prefill_backend if is_prompt else None

    # One query token per row is just the shortest block.
    forward_decode = forward_extend


def create_backend(model_runner: Any) -> DlmAttentionBackend:
    """Factory that SGLang's registry calls with its `ModelRunner`."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    name = prefill_backend_name(
        DecodeSettings.from_env().prefill_attention,
        is_cuda=str(model_runner.device).startswith("cuda"),
        has_flashinfer=importlib.util.find_spec("flashinfer") is not None,
    )
    logger.info("prompts attend through %s, decode rounds through block attention", name)
    return DlmAttentionBackend(model_runner, ATTENTION_BACKENDS[name](model_runner) if name != OWN else None)


def prefill_backend_name(wanted: str, *, is_cuda: bool, has_flashinfer: bool) -> str:
    """The backend that runs prompts: SGLang's name of it, or `OWN`.

    Args:
        wanted: the setting `prefill_attention`.
        is_cuda: whether there is a CUDA device; SGLang's backends need one.
        has_flashinfer: whether FlashInfer is installed.

    Raises:
        SettingsError: the setting names a backend that cannot run here.
    """
    if wanted != "auto":
        if wanted != OWN and (not is_cuda or (wanted == "flashinfer" and not has_flashinfer)):
            raise SettingsError(
                f"prefill_attention {wanted} cannot run here",
                setting="prefill_attention",
                code="setting-not-supported",
                hint="leave it at auto",
            )
        return wanted
    if not is_cuda:
        return OWN
    return "flashinfer" if has_flashinfer else "triton"


def _host_layout(forward_batch: Any) -> tuple[list[int], list[int], torch.Tensor]:
    """Row lengths, key lengths and per-token limits of a prefill, or of plain SGLang's decode."""
    seq_lens_cpu = forward_batch.seq_lens_cpu
    seq_lens = (forward_batch.seq_lens if seq_lens_cpu is None else seq_lens_cpu).tolist()
    if forward_batch.forward_mode.is_decode():
        return [1] * len(seq_lens), seq_lens, forward_batch.seq_lens
    return list(forward_batch.extend_seq_lens_cpu), seq_lens, forward_batch.positions + 1
