"""What SGLang finds by name on our objects, and what we touch on its: a rename there would pass without an error."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from sglang.srt.managers import schedule_batch, scheduler
from sglang.srt.managers.scheduler_components import batch_result_processor
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.cuda_graph_config import Backend, CudaGraphConfig, Phase, with_phase
from sglang.srt.server_args import ServerArgs

from dlm_sglang.decode.state import PADDING_SLOT
from dlm_sglang.seams.spec_algorithm import disable_stock_graphs

REQUEST_ATTRIBUTES = ("inflight_middle_chunks", "extend_range", "full_untruncated_fill_ids", "is_retracted", "kv")


def test_processor_asks_the_worker_before_it_releases_kv() -> None:
    source = inspect.getsource(batch_result_processor)
    assert source.count('"prepare_for_kv_cache_release"') >= 1, (
        "scratch KV of diffusion's last blocks would reach the prefix cache (seams/worker.py)"
    )


def test_scheduler_lets_the_algorithm_make_its_future_map() -> None:
    assert "create_future_map(" in inspect.getsource(scheduler)


@pytest.mark.parametrize("name", REQUEST_ATTRIBUTES)
def test_request_has_what_prefills_and_results_go_by(name: str) -> None:
    assert f"self.{name}" in inspect.getsource(schedule_batch.Req), "seams/worker.py, seams/results.py, seams/batch.py"


def test_no_request_gets_the_slot_of_padding() -> None:
    pool = ReqToTokenPool(size=3, max_context_len=8, device="cpu", enable_memory_saver=False)
    assert PADDING_SLOT not in list(pool.free_slots)
    assert pool.req_to_token.shape[0] > 3


def test_stock_graphs_are_off_in_every_phase() -> None:
    assert hasattr(ServerArgs(model_path="none"), "cuda_graph_config")
    captures = with_phase(
        with_phase(CudaGraphConfig(), Phase.DECODE, backend=Backend.FULL), Phase.PREFILL, backend="full"
    )
    arguments = SimpleNamespace(cuda_graph_config=captures)
    disable_stock_graphs(arguments)
    for phase in Phase.ALL:
        assert getattr(arguments.cuda_graph_config, phase).backend == Backend.DISABLED
