"""Our request parameters inside SGLang's own HTTP process, however the server was started.

Contact points, all in the process that serves HTTP:

- `http_server.app.user_middleware`: the innermost layer, behind SGLang's authorisation, CORS and
  decompression, in front of its routes. Added when the plugin loads, before the first request.
- `TokenizerManager.generate_request`: what reaches the decode worker from any other route
  (Anthropic, Ollama, Responses, gRPC, `sglang.Engine`) is checked by the same rules, and what ran is
  handed to the HTTP request that asked.
- `TokenizerManager.update_request_meta_info`: the worker's statistics arrive as `meta_info["dlm"]`.
- `uvicorn.run`: with `--tokenizer-worker-num` above 1 SGLang starts HTTP workers that import its
  app by name and load no plugins. They are started on `worker_app` of this module instead, which
  loads the plugins first. Granian's workers (`--enable-http2`) cannot be reached: refused.

While the server decodes with another algorithm than ours, all of it does nothing.
"""

from __future__ import annotations

import logging
import multiprocessing
import pkgutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import cache
from typing import Any

from dlm_sglang.api import report
from dlm_sglang.api.middleware import DlmMiddleware
from dlm_sglang.api.translate import translate_sampling
from dlm_sglang.api.unsupported import REFUSALS, Surface, refuse_unsupported
from dlm_sglang.errors import RequestError, SeamError
from dlm_sglang.params import ServerLimits
from dlm_sglang.seams.check import check_shape
from dlm_sglang.seams.http_table import (
    GENERATE,
    GRANIAN_RUN,
    HTTP_SEAMS,
    HTTP_SERVER,
    META_INFO,
    STOCK_APP,
    UVICORN_RUN,
)
from dlm_sglang.seams.names import ALGORITHM
from dlm_sglang.seams.table import Kind
from dlm_sglang.settings import DecodeSettings

logger = logging.getLogger(__name__)

IMPORT_NAME = f"{HTTP_SERVER}:app"
WORKER_APP = "dlm_sglang.seams.http:worker_app"


def is_http_process() -> bool:
    """Whether this process serves HTTP, or may come to: the main one, or one that has SGLang's app."""
    return HTTP_SERVER in sys.modules or multiprocessing.parent_process() is None


def install_http() -> None:
    """Register every contact point of this module, once; nothing in processes that serve no HTTP.

    SGLang applies the hooks after the plugin returns; `check_http` tells whether it did.
    """
    if not is_http_process():
        return
    app = _app()
    if any(layer.cls is DlmMiddleware for layer in app.user_middleware):
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from starlette.middleware import Middleware

    if app.middleware_stack is not None:
        raise SeamError([f"{STOCK_APP}: it serves already, so no layer can be added"])
    # At the end of the list: innermost, so that SGLang's own layers see requests and errors first.
    app.user_middleware.append(Middleware(DlmMiddleware, limits=server_limits))
    app.router.lifespan_context = _checked_lifespan(app.router.lifespan_context)
    HookRegistry.register(GENERATE, generate_request, HookType.AROUND)
    HookRegistry.register(META_INFO, update_request_meta_info, HookType.AROUND)
    HookRegistry.register(UVICORN_RUN, run_uvicorn, HookType.AROUND)
    HookRegistry.register(GRANIAN_RUN, run_granian, HookType.AROUND)


def check_http() -> list[str]:
    """What did not take effect, one line each; empty in processes that serve no HTTP."""
    if not is_http_process():
        return []
    lost = [problem for seam in HTTP_SEAMS if (problem := check_shape(seam)) is not None]
    if lost:
        return lost
    if not any(layer.cls is DlmMiddleware for layer in _app().user_middleware):
        lost.append(f"{STOCK_APP}: our layer is not in front of the routes. Fix: seams/http.py install_http")
    lost += [
        f"{seam.target}: our hook is not in force. Lost: {seam.why}. Fix: {seam.adapter}"
        for seam in HTTP_SEAMS
        if seam.kind is Kind.HOOK and not hasattr(pkgutil.resolve_name(seam.target), "__wrapped__")
    ]
    return lost


def server_limits() -> ServerLimits | None:
    """The limits of the server in this process, or None while it decodes with another algorithm."""
    from sglang.srt.entrypoints.http_server import get_global_state

    state = get_global_state()
    return None if state is None else limits_of(state.tokenizer_manager)


@cache
def limits_of(manager: Any) -> ServerLimits | None:
    """The limits of the server or engine behind a tokenizer manager, or None as in `server_limits`."""
    from sglang.srt.runtime_context import get_spec

    if not _is_ours():
        return None
    return DecodeSettings.from_env().limits(
        max_block_length=get_spec().speculative_num_draft_tokens,
        checkpoint_block_length=getattr(manager.model_config.hf_config, "block_size", None),
    )


async def generate_request(original: Callable[..., Any], manager: Any, obj: Any, request: Any = None) -> Any:
    """Check what is about to be decoded, by whatever route it came, and report what ran."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    limits = limits_of(manager)
    if limits is not None and isinstance(obj, GenerateReqInput):
        try:
            _translate_internal(obj, limits)
        except RequestError as error:
            # SGLang answers a ValueError with a 400 on every route.
            raise ValueError(str(error)) from error
    async with aclosing(original(manager, obj, request)) as outputs:
        async for output in outputs:
            report.record_output(output)
            yield output
    _forget_unsent(manager, obj)


def update_request_meta_info(
    original: Callable[..., None], manager: Any, meta_info: Any, state: Any, info: Any, index: int, reason: Any
) -> None:
    """Put the worker's statistics into `meta_info` whole: SGLang would keep them as a list per token."""
    reported = info.get(report.STATS_KEY)
    rest = {key: values for key, values in info.items() if key != report.STATS_KEY}
    original(manager, meta_info, state, rest, index, reason)
    if reported and reported[index]:
        meta_info[report.STATS_KEY] = reported[index][-1]


def run_uvicorn(original: Callable[..., None], app: Any, *args: Any, **kwargs: Any) -> None:
    """Start SGLang's HTTP workers on our app, which loads the plugins before it hands out SGLang's."""
    if isinstance(app, str) and app.startswith("sglang.") and app != IMPORT_NAME:
        raise SeamError([f"{UVICORN_RUN}: HTTP workers would start on {app}, not on {IMPORT_NAME}"])
    original(WORKER_APP if app == IMPORT_NAME else app, *args, **kwargs)


def run_granian(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Refuse HTTP/2 with several HTTP workers: they would start without our layer."""
    if kwargs.get("tokenizer_worker_num", 1) > 1 and _is_ours():
        raise SeamError(
            [f"{GRANIAN_RUN}: --enable-http2 with --tokenizer-worker-num above 1 starts workers without plugins"],
            hint="leave one of the two flags out",
        )
    original(*args, **kwargs)


def __getattr__(name: str) -> Any:
    """`worker_app`: SGLang's app in an HTTP worker process, after the plugins are loaded and checked."""
    if name != "worker_app":
        raise AttributeError(name)
    app = _app()
    from sglang.srt.plugins import load_plugins

    load_plugins()
    lost = check_http()
    if lost:
        raise SeamError(lost, hint="start with --tokenizer-worker-num 1")
    return app


def _app() -> Any:
    from sglang.srt.entrypoints.http_server import app

    return app


def _checked_lifespan(
    original: Callable[[Any], AbstractAsyncContextManager[Any]],
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """SGLang's lifespan, refusing to start what would serve without our layer or with wrong settings."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        lost = check_http()
        if lost:
            raise SeamError(lost)
        async with original(app) as state:
            server_limits()
            yield state

    return lifespan


def _is_ours() -> bool:
    from sglang.srt.runtime_context import get_spec

    return str(get_spec().speculative_algorithm).upper() == ALGORITHM


_NATIVE_NAMES = tuple(refusal.name for refusal in REFUSALS if Surface.NATIVE in refusal.surfaces)


def _translate_internal(obj: Any, limits: ServerLimits) -> None:
    """Check SGLang's internal request and resolve its decode parameters in place."""
    refuse_unsupported({name: getattr(obj, name, None) for name in _NATIVE_NAMES}, Surface.NATIVE)
    obj.sampling_params = translate_sampling(obj.sampling_params, limits, resolved=True)


def _forget_unsent(manager: Any, obj: Any) -> None:
    """Drop the states that SGLang makes for a streamed request with n > 1 and never sends or removes.

    They would pile up, and keep the server from ever ending on SIGTERM.
    TODO(sglang>0.5.21): drop when `_handle_batch_request` removes every state of the request it expands.
    """
    for rid in obj.rid if isinstance(obj.rid, list) else [obj.rid]:
        state = manager.rid_to_state.get(rid)
        if state is not None and not state.dispatched:
            del manager.rid_to_state[rid]
