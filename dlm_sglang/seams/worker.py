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

from dlm_sglang.decode.auto.round_time import RoundShape
from dlm_sglang.decode.buckets import make_buckets
from dlm_sglang.decode.controlled import choose_controlled_seeds
from dlm_sglang.decode.layout import make_layout
from dlm_sglang.decode.round import RoundOutputs
from dlm_sglang.decode.state import BlockState
from dlm_sglang.decode.watch import make_watch
from dlm_sglang.params import GenerationMode
from dlm_sglang.seams.batch import DlmRoundState
from dlm_sglang.seams.check import require_seams
from dlm_sglang.seams.choices import Choices
from dlm_sglang.seams.controls import prefill_controls, round_controls
from dlm_sglang.seams.logprobs import give_seed_logprobs
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
        self._target_worker = target_worker
        self.model_runner = target_worker.model_runner
        self.device = target_worker.device
        config = self.model_runner.model_config
        hf_config = config.hf_text_config
        self.context_length = int(config.context_len)
        self.mask_token_id = int(hf_config.mask_token_id)
        self.vocab_size = int(config.vocab_size)
        self.speculative_num_draft_tokens = int(get_spec().speculative_num_draft_tokens)
        self.settings = DecodeSettings.from_env()
        self.limits = self.settings.limits(
            max_block_length=self.speculative_num_draft_tokens,
            checkpoint_block_length=int(hf_config.block_size),
        )
        self.algorithm = SpeculativeAlgorithm.from_string(ALGORITHM)
        self.choices = Choices(self.limits.max_block_length, self.settings.budget_bounds)
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
        controls = prefill_controls(batch.reqs, self.vocab_size, self.device)
        seed_ids, logprobs = choose_controlled_seeds(
            result.logits_output.next_token_logits, policies, seq_lens, self.mask_token_id, controls
        )
        if logprobs is not None:
            give_seed_logprobs(result.logits_output, logprobs, len(batch.reqs))
        result.next_token_ids = seed_ids
        result.new_seq_lens = seq_lens
        result.next_draft_input = self._round_state()
        result.choices = self.choices
        cached_lens = batch.seq_lens_cpu.tolist()
        held = self._hold_emissions(batch, states, seed_ids, cached_lens, result)
        emitted = [len(req.output_ids) + (row not in held) for row, req in enumerate(batch.reqs)]
        if controls is not None and controls.rows is not None:
            is_emitted = torch.tensor([int(row not in held) for row in range(len(states))])
            controls.rows.remember(seed_ids[:, None], is_emitted.to(self.device, non_blocking=True))
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
            self.choices.admit(req, state)
            # Not SGLang's count of chunks on the way: an overlapped loop is one behind with it.
            is_last_chunk = req.extend_range.end >= len(req.full_untruncated_fill_ids)
            is_diffusion = policy.mode is GenerationMode.DIFFUSION
            resumes = is_diffusion and policy.seeded_blocks and len(req.output_ids) > 0
            if not is_last_chunk or not (resumes or not policy.seeded_blocks):
                continue
            if policy.max_new_tokens == 0:
                # SGLang prefills the prompt of several choices so; without a token it would never see the end.
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
            carried.layout = make_layout([req.dlm.policy for req in batch.reqs], self.device, carried.widths)
            carried.controls = round_controls(batch.reqs, carried.widths, self.vocab_size, self.device)
            carried.watch = make_watch([req.dlm.is_watched for req in batch.reqs], self.device)
        assert self.state is not None
        self.choices.write(self.state, batch)
        outputs = self._run_round(batch.req_pool_indices, batch.seq_lens, carried)
        watch = carried.watch
        return DlmRoundResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=outputs.token_ids.reshape(-1),
            accept_lens=outputs.accept_lens,
            next_draft_input=self._round_state(carried),
            speculative_num_draft_tokens=outputs.token_ids.shape[1],
            # With SGLang's default of 1 a row that accepts nothing counts -1 correct drafts.
            num_non_draft_tokens_per_req=0,
            new_seq_lens=outputs.new_seq_lens,
            is_denoise=outputs.is_denoise,
            logprobs=outputs.logprobs,
            watch=watch,
            # Gathered now: the next round may be launched before this one's result is looked at.
            watched_blocks=watch.look(self.state, batch.req_pool_indices) if watch and self.state else None,
            choices=self.choices,
            shape=RoundShape(len(batch.reqs), carried.layout.num_tokens, carried.num_kv_tokens),
        )

    def _round_state(self, before: DlmRoundState | None = None) -> DlmRoundState:
        """What the batch carries to its next round."""
        state = DlmRoundState(self.limits.max_block_length)
        state.choices = self.choices
        if before is not None:
            state.layout, state.controls, state.watch = before.layout, before.controls, before.watch
            state.widths = before.widths
        return state

    def _run_round(self, slots: torch.Tensor, seq_lens: torch.Tensor, carried: DlmRoundState) -> RoundOutputs:
        assert self.rounds is not None and carried.layout is not None
        if self.padded_rounds is not None and carried.controls is None:
            outputs = self.padded_rounds.run(slots, seq_lens, carried.layout)
            if outputs is not None:
                return outputs
        return self.rounds.run(
            slots,
            seq_lens,
            carried.layout,
            may_cut=carried.may_cut,
            max_kv_len=carried.max_kv_len,
            controls=carried.controls,
        )

    def prepare_for_kv_cache_release(self, req: Any) -> None:
        """Called before a finished request's KV goes to the prefix cache: keep scratch KV out of it."""
        req.kv.kv_committed_len -= req.dlm.num_scratch_tokens
        req.dlm.num_scratch_tokens = 0
