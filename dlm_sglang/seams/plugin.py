"""Entry point of SGLang's plugin loader: registers everything, in every process, or stops the process.

SGLang logs a plugin that raises and goes on without it. A server asked for our algorithm must not start
like that, so a failure here ends the process; servers that do not use the algorithm only get a log line.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlm_sglang.seams.crash import end_soon_after_a_crash
from dlm_sglang.seams.names import ALGORITHM, ARCHITECTURE, ATTENTION_BACKEND, MODEL_TYPE
from dlm_sglang.seams.redact import hide_keys
from dlm_sglang.settings import DecodeSettings

logger = logging.getLogger(__name__)

REQUIRED_VARIABLE = "DLM_PLUGIN_REQUIRED"
EXIT_STATUS_DRIFT = 2


def register() -> None:
    """Register algorithm, attention backend, model, config and hooks with SGLang."""
    if _is_wanted():
        # Child processes have no command line to look at.
        os.environ[REQUIRED_VARIABLE] = "1"
        end_soon_after_a_crash()
    hide_keys()
    try:
        _register_all()
    except Exception as error:
        if os.environ.get(REQUIRED_VARIABLE) != "1":
            logger.exception("dlm_sglang could not register with SGLang; its algorithm is not available")
            return
        logger.critical("dlm_sglang could not register with SGLang", exc_info=True)
        sys.stderr.write(
            f"error: dlm_sglang could not register with SGLang, so --speculative-algorithm {ALGORITHM} cannot run: "
            f"{type(error).__name__}: {error}\n\n"
            "hint: run the contract tests (pytest tests/contract) to see what drifted\n"
        )
        raise SystemExit(EXIT_STATUS_DRIFT) from error


def _is_wanted() -> bool:
    arguments = [argument.upper() for argument in sys.argv]
    return any(
        argument == f"--SPECULATIVE-ALGORITHM={ALGORITHM}"
        or (argument == "--SPECULATIVE-ALGORITHM" and arguments[index + 1 : index + 2] == [ALGORITHM])
        for index, argument in enumerate(arguments)
    )


def _register_all() -> None:
    _register_model()
    _register_attention()
    _register_algorithm()
    _register_hooks()
    from dlm_sglang.seams.http import install_http

    install_http()


def _register_model() -> None:
    from sglang.srt.models.registry import ModelRegistry
    from sglang.srt.utils.hf_transformers.common import _CONFIG_REGISTRY
    from transformers import AutoConfig

    from dlm_sglang.seams.models.config import NemotronLabsDiffusionConfig
    from dlm_sglang.seams.models.nemotron_labs_diffusion import NemotronLabsDiffusionModel

    if MODEL_TYPE not in _CONFIG_REGISTRY:
        _CONFIG_REGISTRY[MODEL_TYPE] = NemotronLabsDiffusionConfig
        AutoConfig.register(MODEL_TYPE, NemotronLabsDiffusionConfig, exist_ok=True)
    # Not `ModelRegistry.register`: that imports every model that SGLang ships, seconds in every process.
    ModelRegistry.models[ARCHITECTURE] = NemotronLabsDiffusionModel


def _register_attention() -> None:
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.server_args import add_attention_backend_choices

    from dlm_sglang.seams.attention import create_backend

    register_attention_backend(ATTENTION_BACKEND)(create_backend)
    add_attention_backend_choices([ATTENTION_BACKEND])


def _register_algorithm() -> None:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    from sglang.srt.speculative.spec_registry import get_spec

    from dlm_sglang.seams.spec_algorithm import DlmAlgorithm

    if get_spec(ALGORITHM) is not None:
        return

    def factory(server_args: object) -> type:
        from dlm_sglang.seams.worker import DlmWorker

        return DlmWorker

    SpeculativeAlgorithm.register(ALGORITHM, supports_overlap=True, spec_class=DlmAlgorithm)(factory)


def _register_hooks() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from dlm_sglang.seams import batch, cpu_helpers, receive, request, results
    from dlm_sglang.seams.check import on_cpu_platform

    srt = "sglang.srt"
    hooks = [
        (f"{srt}.speculative.eagle_utils.eagle_prepare_for_decode", batch.prepare_decode_round, HookType.AROUND),
        (
            f"{srt}.managers.schedule_batch.ScheduleBatch._new_tokens_required_next_decode_spec_v2",
            batch.tokens_for_next_round,
            HookType.AROUND,
        ),
        (
            f"{srt}.managers.scheduler_components.batch_result_processor"
            ".SchedulerBatchResultProcessor.process_batch_result_prefill",
            results.hold_emissions,
            HookType.AROUND,
        ),
        (
            f"{srt}.managers.scheduler_components.batch_result_processor"
            ".SchedulerBatchResultProcessor.process_batch_result_decode",
            results.account_round,
            HookType.AROUND,
        ),
        (
            f"{srt}.managers.scheduler_components.request_receiver.SchedulerRequestReceiver._pull_raw_reqs",
            receive.pull_when_there,
            HookType.AROUND,
        ),
        (f"{srt}.managers.scheduler.Scheduler._forward_isolation", batch.leave_batch_as_it_is, HookType.AROUND),
        (f"{srt}.managers.schedule_batch.Req.__init__", request.forget_itself, HookType.AROUND),
        (f"{srt}.managers.schedule_batch.Req.update_finish_state", results.skip_silent_rounds, HookType.AROUND),
        (
            f"{srt}.managers.scheduler.Scheduler.get_output_streamer_class",
            results.output_streamer_class,
            HookType.AFTER,
        ),
    ]
    if on_cpu_platform():
        hooks += [
            (f"{srt}.utils.common.support_triton", cpu_helpers.support_triton, HookType.AROUND),
            (
                f"{srt}.distributed.device_communicators.pynccl_wrapper.find_nccl_library",
                cpu_helpers.find_nccl_library,
                HookType.REPLACE,
            ),
            (
                f"{srt}.mem_cache.allocation.assign_req_to_token_pool_func",
                cpu_helpers.assign_req_to_token_pool,
                HookType.REPLACE,
            ),
        ]
    hooks += [(target, hook, HookType.AROUND) for target, hook in _trace_hooks()]
    for target, hook, hook_type in hooks:
        HookRegistry.register(target, hook, hook_type)


def _trace_hooks() -> list[tuple[str, Callable[..., Any]]]:
    """Hooks that record every round, where the settings ask for a record."""
    settings = DecodeSettings.from_env()
    if settings.round_trace is None:
        return []
    from dlm_sglang.seams.trace import RoundTrace

    trace = RoundTrace(Path(settings.round_trace), counts_reads=settings.round_trace_reads == "on")
    return [
        ("sglang.srt.managers.scheduler.Scheduler.run_batch", trace.around_run_batch),
        (
            "dlm_sglang.seams.models.nemotron_labs_diffusion.NemotronLabsDiffusionModel.forward",
            trace.around_forward,
        ),
    ]
