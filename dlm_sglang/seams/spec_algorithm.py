"""The speculative-algorithm registration that makes SGLang's scheduler run our decode rounds."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.overlap_utils import FutureMap
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from dlm_sglang.errors import SettingsError
from dlm_sglang.seams.batch import DlmRoundState
from dlm_sglang.seams.check import on_cpu_platform, require_seams
from dlm_sglang.seams.names import ALGORITHM, ATTENTION_BACKEND
from dlm_sglang.settings import DecodeSettings


class DlmFutureMap(FutureMap):
    """Carries row lengths from one overlapped iteration to the next; all else is in `BlockState`, on the device."""

    def resolve_seq_lens_cpu(self, batch: Any) -> None:
        """Point a decode batch to its rows' lengths as the round before it leaves them; the host reads none."""
        if not isinstance(batch.spec_info, DlmRoundState):
            return
        if self.publish_ready is not None:
            self.publish_ready.wait()
        batch.seq_lens = self.new_seq_lens_buf[batch.req_pool_indices]
        batch.seq_lens_cpu = None
        batch.seq_lens_sum = None

    def stash(self, future_indices: Any, payload: Any) -> None:
        """Nothing to relay."""

    def _resolve_spec_extras(self, batch: Any) -> None:
        """Nothing was relayed."""


class DlmAlgorithm(CustomSpecAlgo):
    """Duck-types SGLang's algorithm enum; one model, no draft KV, no draft hidden states."""

    def has_draft_kv(self) -> bool:
        return False

    def carries_draft_hidden_states(self) -> bool:
        return False

    def need_topk(self) -> bool:
        return False

    def create_future_map(
        self,
        device: Any,
        req_to_token_pool: Any,
        needs_cpu_seq_lens: bool = True,
        needs_confidence_relay: bool = False,
    ) -> FutureMap:
        """SGLang's relay between iterations; the scheduler asks the algorithm for it."""
        return DlmFutureMap(device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay)

    def handle_server_args(self, server_args: Any) -> None:
        """Fill in what our rounds need and refuse what they cannot do; called at start-up with the arguments."""
        require_seams("launcher")
        _refuse_unsupported(server_args)
        settings = DecodeSettings.from_env()
        if server_args.speculative_num_draft_tokens is None:
            server_args.speculative_num_draft_tokens = settings.max_block_length
        server_args.speculative_num_steps = 1
        server_args.speculative_eagle_topk = 1
        server_args.attention_backend = ATTENTION_BACKEND
        if settings.overlap_schedule == "off" or (settings.overlap_schedule == "auto" and on_cpu_platform()):
            # Without a device of its own a forward leaves the host nothing to do beside it.
            server_args.disable_overlap_schedule = True
        disable_stock_graphs(server_args)


def disable_stock_graphs(server_args: Any) -> None:
    """Keep SGLang from capturing graphs of its own: it would capture shapes that no round has.

    The flag alone comes too late here: SGLang resolved it into a configuration by phase before it asked us.
    """
    server_args.disable_cuda_graph = True
    config = server_args.cuda_graph_config
    if config is not None:
        for phase in Phase.ALL:
            config = with_phase(config, phase, backend=Backend.DISABLED)
        server_args.cuda_graph_config = config


def _refuse_unsupported(server_args: Any) -> None:
    """Raise `SettingsError` for the first argument that our rounds cannot honour."""
    for name, allowed, reason in _REFUSED:
        # What the user asked for, not what SGLang's defaults made of it so far.
        asked = getattr(server_args, "_raw_input", None) or {}
        value = asked.get(name, allowed[0])
        if value not in allowed:
            raise SettingsError(
                f"--{name.replace('_', '-')} cannot be combined with --speculative-algorithm {ALGORITHM}, "
                f"got {value!r}: {reason}",
                setting=name,
                code="setting-not-supported",
            )


_REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("attention_backend", (None, ATTENTION_BACKEND), "rows need one visibility limit per query token"),
    ("prefill_attention_backend", (None, ATTENTION_BACKEND), "rows need one visibility limit per query token"),
    ("decode_attention_backend", (None, ATTENTION_BACKEND), "rows need one visibility limit per query token"),
    ("pp_size", (1,), "pipeline parallelism is not supported"),
    ("enable_dp_attention", (False,), "data-parallel attention is not supported"),
    ("disaggregation_mode", ("null",), "prefill/decode disaggregation is not supported"),
    ("enable_lora", (None, False), "request LoRA is not supported; the drafter adapter loads by itself"),
    ("speculative_draft_model_path", (None,), "the model drafts for itself"),
    ("enable_mixed_chunk", (False,), "decode rows carry blocks, not single tokens"),
    ("skip_tokenizer_init", (False,), "request parameters are checked where the tokenizer is"),
    ("enable_forward_pass_metrics", (False,), "it reads row lengths that stay on the device"),
    ("enable_hierarchical_cache", (False,), "not tested with scratch KV of denoise rows"),
)
