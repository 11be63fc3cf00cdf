"""The decode worker: one mixed forward per scheduler iteration, every row in its own phase."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from dlm_sglang.decode.buckets import make_buckets
from dlm_sglang.decode.choose import choose_seeds
from dlm_sglang.decode.layout import make_layout
from dlm_sglang.decode.round import RoundOutputs
from dlm_sglang.decode.state import BlockState
from dlm_sglang.heap import keep_trimmed
from dlm_sglang.seams.batch import DlmRoundState
from dlm_sglang.seams.check import require_seams
from dlm_sglang.seams.names import ALGORITHM
from dlm_sglang.seams.request import RequestState, request_state
from dlm_sglang.seams.results import DlmRoundResult
from dlm_sglang.seams.rounds import PaddedRounds, RoundRunner
from dlm_sglang.settings import DecodeSettings

logger = logging.getLogger(__name__)


class DlmWorker(BaseSpecWorker):
    """Draft and verify by the target runner; state in tensors by request slot.

    A prefill normally emits the token that its last causal row predicts: the first block's seed. Two kinds of
    request must not emit it (`held_rows` of the result): unseeded blocks start all masked, and a diffusion
    request that comes back from retraction resumes its block at the seed it already emitted. Neither does the host
    wait for the device in a round: what a round accepted reaches it with the result's copy, one iteration later where
    SGLang's loop overlaps.
    """

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        super().__init__()
        require_seams("scheduler")
        keep_trimmed()
        self._target_worker = target_worker
        self.model_runner = target_worker.model_runner
        self.device = target_worker.device
        config = self.model_runner.model_config
        hf_config = config.hf_text_config
        self.context_length = int(config.context_len)
        self.mask_token_id = int(hf_config.mask_token_id)
        self.speculative_num_draft_tokens = int(get_spec().speculative_num_draft_tokens)
        self.settings = DecodeSettings.from_env()
        self.limits = self.settings.limits(
            max_block_length=self.speculative_num_draft_tokens,
            checkpoint_block_length=int(hf_config.block_size),
        )
        self.algorithm = SpeculativeAlgorithm.from_string(ALGORITHM)
        self.state: BlockState | None = None
        self.rounds: RoundRunner | None = None
        self.padded_rounds: PaddedRounds | None = None

    @property
    def target_worker(self) -> Any:
        return self._target_worker

    @property
    def draft_worker(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        # What the scheduler asks of any model worker is the target worker's to answer.
        if name == "_target_worker":
            raise AttributeError(name)
        return getattr(self._target_worker, name)

    def alloc_memory_pool(
        self, memory_pool_config: Any = None, req_to_token_pool: Any = None, token_to_kv_pool_allocator: Any = None
    ) -> None:
        """Allocate block state for every request slot, once SGLang's pools are there."""
        super().alloc_memory_pool(memory_pool_config, req_to_token_pool, token_to_kv_pool_allocator)
        # A pool smaller than the context ends a sequence as the context's end does: blocks get shorter towards it.
        self.context_length = min(self.context_length, int(self.model_runner.effective_logical_max_total_num_tokens))
        self.state = BlockState(
            self.model_runner.req_to_token_pool.req_to_token.shape[0],
            self.limits.max_block_length,
            mask_token_id=self.mask_token_id,
            context_length=self.context_length,
            device=self.device,
        )
        self.rounds = RoundRunner(self.model_runner, self.state, self.algorithm)

    def init_cuda_graphs(self) -> None:
        """Capture the decode rounds; SGLang calls it when weights, pools and attention backends are there."""
        super().init_cuda_graphs()
        assert self.rounds is not None
        is_cuda = torch.device(self.device).type == "cuda"
        if self.settings.pad_rounds == "on" or (self.settings.pad_rounds == "auto" and is_cuda):
            max_rows = int(self.model_runner.max_running_requests)
            buckets = make_buckets(max_rows, self.limits.max_block_length, self.settings.max_padded_tokens)
            self.padded_rounds = PaddedRounds(self.rounds, buckets)
            self.padded_rounds.capture()

    def forward_batch_generation(
        self, batch: Any, on_publish: Callable[[torch.Tensor], None] | None = None, **kwargs: Any
    ) -> GenerationBatchResult:
        """Run one prefill or one mixed decode round."""
        if batch.forward_mode.is_extend():
            result = self._prefill(batch)
        elif batch.forward_mode.is_decode():
            result = self._decode(batch)
        else:
            raise RuntimeError(f"{ALGORITHM} runs prefill and decode batches, got {batch.forward_mode}")
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        return result

    def _prefill(self, batch: Any) -> GenerationBatchResult:
        assert self.state is not None
        states = [request_state(req, self.limits, self.context_length) for req in batch.reqs]
        result = self._target_worker.forward_batch_generation(batch, is_verify=True)
        policies = [state.policy for state in states]
        slots, seq_lens = batch.req_pool_indices, batch.seq_lens
        seed_ids = choose_seeds(result.logits_output.next_token_logits, policies, seq_lens, self.mask_token_id)
        result.next_token_ids = seed_ids
        result.new_seq_lens = seq_lens
        result.next_draft_input = DlmRoundState(self.limits.max_block_length)
        cached_lens = batch.seq_lens_cpu.tolist()
        held = self._hold_emissions(batch, states, seed_ids, cached_lens, result)
        emitted = [len(req.output_ids) + (row not in held) for row, req in enumerate(batch.reqs)]
        self.state.admit(slots, policies, emitted, seed_ids, cached_lens)
        return result

    def _hold_emissions(
        self,
        batch: Any,
        states: list[RequestState],
        seed_ids: torch.Tensor,
        cached_lens: list[int],
        result: GenerationBatchResult,
    ) -> set[int]:
        """Name the prefills whose token is not emitted, and take a resumed block's seed back out of the cache."""
        held: set[int] = set()
        for row, (req, state) in enumerate(zip(batch.reqs, states, strict=True)):
            policy = state.policy
            state.num_pending_tokens = 0
            # Not SGLang's count of chunks on the way: an overlapped loop is one behind with it.
            is_last_chunk = req.extend_range.end >= len(req.full_untruncated_fill_ids)
            resumes = policy.accepts_whole_block and policy.seeded_blocks and len(req.output_ids) > 0
            if not is_last_chunk or not (resumes or not policy.seeded_blocks):
                continue
            held.add(row)
            if resumes:
                if result.new_seq_lens is batch.seq_lens:
                    result.new_seq_lens = batch.seq_lens.clone()
                result.new_seq_lens[row] -= 1
                cached_lens[row] -= 1
                seed_ids[row] = req.output_ids[-1]
                req.kv.kv_committed_len -= 1
        result.held_rows = held
        return held

    def _decode(self, batch: Any) -> DlmRoundResult:
        carried: DlmRoundState = batch.spec_info
        if carried.layout is None:
            carried.layout = make_layout([req.dlm.policy for req in batch.reqs], self.device)
        outputs = self._run_round(batch.req_pool_indices, batch.seq_lens, carried)
        return DlmRoundResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=outputs.token_ids.reshape(-1),
            accept_lens=outputs.accept_lens,
            next_draft_input=DlmRoundState(self.limits.max_block_length, carried.layout),
            speculative_num_draft_tokens=outputs.token_ids.shape[1],
            # With SGLang's default of 1 a row that accepts nothing counts -1 correct drafts.
            num_non_draft_tokens_per_req=0,
            new_seq_lens=outputs.new_seq_lens,
            is_denoise=outputs.is_denoise,
        )

    def _run_round(self, slots: torch.Tensor, seq_lens: torch.Tensor, carried: DlmRoundState) -> RoundOutputs:
        assert self.rounds is not None and carried.layout is not None
        if self.padded_rounds is not None:
            outputs = self.padded_rounds.run(slots, seq_lens, carried.layout)
            if outputs is not None:
                return outputs
        return self.rounds.run(slots, seq_lens, carried.layout, may_cut=carried.may_cut, max_kv_len=carried.max_kv_len)

    def prepare_for_kv_cache_release(self, req: Any) -> None:
        """Called before a finished request's KV goes to the prefix cache: keep scratch KV out of it."""
        req.kv.kv_committed_len -= req.dlm.num_scratch_tokens
        req.dlm.num_scratch_tokens = 0
