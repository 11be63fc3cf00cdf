"""Every contact point with SGLang, as data: what we touch, what we rely on, why, and when it may go.

`check.py` verifies each row at start-up, `tests/contract` verifies each row against the installed SGLang.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a row is attached."""

    REGISTRY = "registry"
    HOOK = "hook"
    CALL = "call"


@dataclass(frozen=True)
class Seam:
    """One contact point.

    Attributes:
        target: dotted path in SGLang.
        parameters: parameter names that we rely on; empty for things that are not called.
        adapter: our file that has to change when the row drifts.
        why: what is lost without it.
        removal: when the row can go.
        kind: a registration, a hook on SGLang's code, or a call into it.
        cpu_only: attached on the CPU platform alone.
    """

    target: str
    parameters: tuple[str, ...]
    adapter: str
    why: str
    removal: str
    kind: Kind = Kind.CALL
    cpu_only: bool = False


_SRT = "sglang.srt"
_BATCH = f"{_SRT}.managers.schedule_batch"
_RESULTS = f"{_SRT}.managers.scheduler_components.batch_result_processor"

SEAMS: tuple[Seam, ...] = (
    Seam(
        f"{_SRT}.speculative.spec_info.SpeculativeAlgorithm.register",
        ("name", "supports_overlap", "spec_class"),
        "seams/plugin.py",
        "the scheduler would not know the decode loop",
        "never: the official extension point",
        Kind.REGISTRY,
    ),
    Seam(
        f"{_SRT}.layers.attention.attention_registry.register_attention_backend",
        ("name",),
        "seams/plugin.py",
        "no attention with a limit per query token",
        "never: the official extension point",
        Kind.REGISTRY,
    ),
    Seam(
        f"{_SRT}.models.registry.ModelRegistry.models",
        (),
        "seams/plugin.py",
        "the architecture would be unknown",
        "SGLang ships the model (sgl-project/sglang#25803)",
        Kind.REGISTRY,
    ),
    Seam(
        f"{_SRT}.utils.hf_transformers.common._CONFIG_REGISTRY",
        (),
        "seams/plugin.py",
        "config.json would need remote code",
        "transformers ships the config class",
        Kind.REGISTRY,
    ),
    Seam(
        f"{_SRT}.speculative.eagle_utils.eagle_prepare_for_decode",
        ("batch",),
        "seams/batch.py prepare_decode_round",
        "every row would reserve twice the largest block, past the request table's end at the context limit",
        "SGLang lets a registered algorithm prepare its own decode batch",
        Kind.HOOK,
    ),
    Seam(
        f"{_BATCH}.ScheduleBatch._new_tokens_required_next_decode_spec_v2",
        ("self", "requests", "page_size"),
        "seams/batch.py tokens_for_next_round",
        "requests would be retracted although their blocks fit",
        "with the row above",
        Kind.HOOK,
    ),
    Seam(
        f"{_RESULTS}.SchedulerBatchResultProcessor.process_batch_result_prefill",
        ("self", "batch", "result"),
        "seams/results.py hold_emissions",
        "unseeded blocks and blocks resumed after retraction would emit a token of the wrong kind",
        "SGLang lets a prefill emit nothing",
        Kind.HOOK,
    ),
    Seam(
        f"{_RESULTS}.SchedulerBatchResultProcessor.process_batch_result_decode",
        ("self", "batch", "result"),
        "seams/results.py account_round",
        "responses could not say what a request cost, and scratch KV would reach the prefix cache",
        "SGLang tells a registered algorithm of each processed round",
        Kind.HOOK,
    ),
    Seam(
        f"{_SRT}.managers.scheduler.Scheduler._forward_isolation",
        ("self", "batch", "overlap"),
        "seams/batch.py leave_batch_as_it_is",
        "each decode round would copy a hundred fields of its batch out and in again",
        "SGLang asks the worker whether it changes the batch",
        Kind.HOOK,
    ),
    Seam(
        f"{_SRT}.managers.scheduler_components.request_receiver.SchedulerRequestReceiver._pull_raw_reqs",
        ("self",),
        "seams/receive.py pull_when_there",
        "each round would fail to receive from two empty sockets, an exception each",
        "SGLang polls before it receives",
        Kind.HOOK,
    ),
    Seam(
        f"{_BATCH}.Req.__init__",
        ("self", "sampling_params", "custom_logit_processor"),
        "seams/request.py forget_itself",
        "requests that ended would stay in memory, thousands of them",
        "SGLang does not let a request hold itself",
        Kind.HOOK,
    ),
    Seam(
        f"{_BATCH}.Req.update_finish_state",
        ("self", "new_accepted_len"),
        "seams/results.py skip_silent_rounds",
        "each denoise round would search a request's whole output for stop tokens",
        "SGLang skips the search when nothing was accepted",
        Kind.HOOK,
    ),
    Seam(
        f"{_SRT}.managers.scheduler.Scheduler.get_output_streamer_class",
        ("self",),
        "seams/results.py",
        "responses could not say what a request cost",
        "never: the documented way to add per-request output",
        Kind.HOOK,
    ),
    Seam(
        f"{_SRT}.utils.common.support_triton",
        ("backend",),
        "seams/cpu_helpers.py",
        "SGLang would launch Triton kernels without a GPU",
        "SGLang asks the platform",
        Kind.HOOK,
        cpu_only=True,
    ),
    Seam(
        f"{_SRT}.distributed.device_communicators.pynccl_wrapper.find_nccl_library",
        (),
        "seams/cpu_helpers.py",
        "tensor-parallel ranks on CPUs would not start where torch's build has NCCL",
        "SGLang asks for the device before it loads NCCL",
        Kind.HOOK,
        cpu_only=True,
    ),
    Seam(
        f"{_SRT}.mem_cache.allocation.assign_req_to_token_pool_func",
        ("req_pool_indices", "req_to_token", "start_offset", "end_offset", "out_cache_loc", "batch_size"),
        "seams/cpu_helpers.py",
        "SGLang would launch Triton kernels without a GPU",
        "SGLang asks the platform",
        Kind.HOOK,
        cpu_only=True,
    ),
    Seam(
        f"{_SRT}.mem_cache.allocation.alloc_for_spec_decode",
        (
            "tree_cache",
            "req_to_token_pool",
            "reqs",
            "req_pool_indices",
            "cur_kv_lens",
            "cur_kv_lens_cpu",
            "nxt_kv_lens",
            "nxt_kv_lens_cpu",
            "num_needed_tokens",
            "batch",
        ),
        "seams/batch.py prepare_decode_round",
        "blocks would have no KV slots",
        "never",
    ),
    Seam(
        f"{_SRT}.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.check_decode_capacity",
        ("self", "num_tokens", "tree_cache", "requests", "spec_algorithm"),
        "seams/auto.py _has_room",
        "blocks under `auto` could grow past the KV pool, which ends the scheduler",
        "never",
    ),
    Seam(
        f"{_SRT}.mem_cache.base_prefix_cache.BasePrefixCache.evictable_size",
        ("self",),
        "seams/batch.py prepare_decode_round",
        "once prefixes fill the pool, no slots would be taken ahead, and every row would allocate in every round",
        "never",
    ),
    Seam(
        f"{_SRT}.runtime_context.get_parallel",
        (),
        "seams/auto.py, seams/budget.py",
        "tensor-parallel ranks would choose different blocks, and hang",
        "never",
    ),
    Seam(
        f"{_SRT}.observability.req_time_stats.SchedulerReqTimeStats.set_scheduler_recv_time",
        ("self", "ts"),
        "seams/budget.py",
        "nobody could tell how much of a latency budget is left: it sets `scheduler_recv_time`",
        "never",
    ),
    Seam(
        f"{_SRT}.managers.tp_worker.TpModelWorker.forward_batch_generation",
        ("self", "batch", "forward_batch", "is_verify"),
        "seams/worker.py",
        "no forward",
        "never",
    ),
    Seam(
        f"{_SRT}.model_executor.forward_batch_info.ForwardBatch",
        (
            "forward_mode",
            "batch_size",
            "input_ids",
            "req_pool_indices",
            "seq_lens",
            "out_cache_loc",
            "seq_lens_sum",
            "seq_lens_cpu",
            "positions",
            "spec_algorithm",
            "spec_info",
            "capture_hidden_mode",
            "return_hidden_states_before_norm",
        ),
        "seams/rounds.py",
        "no mixed forward",
        "never",
    ),
    Seam(
        f"{_SRT}.managers.scheduler.Scheduler.run_batch",
        ("self", "batch"),
        "seams/trace.py",
        "rounds could not be timed (`round_trace`, make bench-engine)",
        "SGLang offers the duration of each round",
    ),
    Seam(
        f"{_SRT}.model_executor.forward_context.forward_context",
        ("ctx",),
        "seams/rounds.py",
        "no decode round",
        "never",
    ),
    Seam(
        f"{_SRT}.model_executor.forward_context.ForwardContext",
        ("attn_backend",),
        "seams/rounds.py",
        "no decode round",
        "never",
    ),
    Seam(
        f"{_SRT}.distributed.parallel_state.graph_capture",
        (),
        "seams/rounds.py",
        "captured rounds would run collectives that are not fit for graphs",
        "never",
    ),
    Seam(
        f"{_SRT}.model_executor.cuda_graph_config.with_phase",
        ("config", "phase"),
        "seams/spec_algorithm.py disable_stock_graphs",
        "SGLang would capture graphs of shapes that no round has, and fail at start on a GPU",
        "SGLang asks a registered algorithm whether to capture",
    ),
    Seam(
        f"{_SRT}.speculative.base_spec_worker.BaseSpecWorker.init_cuda_graphs",
        ("self",),
        "seams/worker.py",
        "rounds would not be captured",
        "never",
    ),
    Seam(
        f"{_SRT}.speculative.base_spec_worker.BaseSpecWorker.alloc_memory_pool",
        ("self", "memory_pool_config", "req_to_token_pool", "token_to_kv_pool_allocator"),
        "seams/worker.py",
        "no block state",
        "never",
    ),
    Seam(
        f"{_SRT}.utils.common.async_d2h",
        ("tensor",),
        "seams/results.py DlmRoundResult",
        "the host would have to wait for what a round was",
        "never",
    ),
    Seam(
        f"{_SRT}.managers.overlap_utils.FutureMap",
        ("device", "spec_algo", "req_to_token_pool", "needs_cpu_seq_lens", "needs_confidence_relay"),
        "seams/spec_algorithm.py DlmFutureMap",
        "no relay between overlapped iterations",
        "never: the algorithm makes its own map",
    ),
    Seam(
        f"{_SRT}.mem_cache.memory_pool.KVWriteLoc",
        (),
        "seams/attention.py",
        "keys and values could not be written",
        "never",
    ),
    Seam(
        f"{_SRT}.managers.overlap_utils.FutureMap.stash",
        ("self", "future_indices", "payload"),
        "seams/spec_algorithm.py DlmFutureMap",
        "overlapped iterations would relay tensors that we do not have",
        "never: the algorithm makes its own map",
    ),
    Seam(
        f"{_SRT}.managers.overlap_utils.FutureMap.resolve_seq_lens_cpu",
        ("self", "batch"),
        "seams/spec_algorithm.py DlmFutureMap",
        "overlapped rounds would have the lengths of other rows",
        "never: the algorithm makes its own map",
    ),
    Seam(
        f"{_SRT}.managers.overlap_utils.FutureMap._resolve_spec_extras",
        ("self", "batch"),
        "seams/spec_algorithm.py DlmFutureMap",
        "overlapped iterations would relay tensors that we do not have",
        "never: the algorithm makes its own map",
    ),
    Seam(
        f"{_SRT}.managers.utils.GenerationBatchResult.copy_to_cpu",
        ("self", "return_logprob", "return_hidden_states"),
        "seams/results.py DlmRoundResult",
        "the host would have to wait for what a round was",
        "never",
    ),
    Seam(
        f"{_SRT}.managers.utils.GenerationBatchResult",
        (
            "logits_output",
            "next_token_ids",
            "accept_lens",
            "next_draft_input",
            "speculative_num_draft_tokens",
            "num_non_draft_tokens_per_req",
            "new_seq_lens",
            "can_run_cuda_graph",
        ),
        "seams/worker.py",
        "rounds could not emit a different number of tokens per row",
        "never",
    ),
)
