"""Our front end inside SGLang's own HTTP process, however the server was started.

Contact points, all in the process that serves HTTP:

- `http_server.app.user_middleware`: the innermost layer, behind SGLang's authorisation, CORS and
  decompression, in front of its routes. Added when the plugin loads, before the first request. SGLang's
  CORS layer, which lets every web page in, is replaced in its place by one that our settings govern.
- `http_server.app.exception_handlers`: SGLang's message for a body of the wrong shape holds paths of the
  server and the whole prompt; on the routes that take our fields ours names the field instead.
- `http_server.app.openapi`: the schema that `/openapi.json` and `/docs` show tells of our fields.
- `SignalHandler.sigterm_handler`: see `drain.py`.
- `TokenizerManager` and the OpenAI handlers' reading of model names: see `http_requests.py`.
- `uvicorn.run`: with `--tokenizer-worker-num` above 1 SGLang starts HTTP workers that import its
  app by name and load no plugins. They are started on `worker_app` of this module instead, which
  loads the plugins first. Granian's workers (`--enable-http2`) cannot be reached: refused.

While the server decodes with another algorithm than ours, all of it does nothing.
"""

from __future__ import annotations

import multiprocessing
import pkgutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from dlm_sglang.api.asgi import route_path
from dlm_sglang.api.errors import REFUSED_STATUS, error_body, of_validation
from dlm_sglang.api.middleware import ROUTES, DlmMiddleware
from dlm_sglang.api.openapi import with_our_fields
from dlm_sglang.errors import SeamError
from dlm_sglang.seams import drain, http_requests
from dlm_sglang.seams.check import check_shape
from dlm_sglang.seams.http_cors import GovernedCors, govern_cors
from dlm_sglang.seams.http_table import (
    ABORT,
    GENERATE,
    GRANIAN_RUN,
    HTTP_SEAMS,
    HTTP_SERVER,
    META_INFO,
    MODEL_NAME,
    SIGTERM,
    STOCK_APP,
    UVICORN_RUN,
    VALIDATE,
)
from dlm_sglang.seams.table import Kind

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
    from fastapi.exceptions import RequestValidationError
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from starlette.middleware import Middleware

    if app.middleware_stack is not None:
        raise SeamError([f"{STOCK_APP}: it serves already, so no layer can be added"])
    # At the end of the list: innermost, so that SGLang's own layers see requests and errors first.
    ours = Middleware(DlmMiddleware, front=http_requests.front, refused=http_requests.count_refused)
    app.user_middleware.append(ours)
    govern_cors(app, http_requests.front)
    app.router.lifespan_context = _checked_lifespan(app.router.lifespan_context)
    app.openapi = _openapi(app.openapi)
    invalid = _invalid_body(app.exception_handlers.get(RequestValidationError))
    app.exception_handlers[RequestValidationError] = invalid
    for target, hook in (
        (GENERATE, http_requests.generate_request),
        (VALIDATE, http_requests.validate_one_request),
        (META_INFO, http_requests.update_request_meta_info),
        (ABORT, http_requests.handle_abort),
        (MODEL_NAME, http_requests.whole_model_name),
        (SIGTERM, drain.on_sigterm),
        (UVICORN_RUN, run_uvicorn),
        (GRANIAN_RUN, run_granian),
    ):
        HookRegistry.register(target, hook, HookType.AROUND)


def check_http() -> list[str]:
    """What did not take effect, one line each; empty in processes that serve no HTTP."""
    if not is_http_process():
        return []
    lost = [problem for seam in HTTP_SEAMS if (problem := check_shape(seam)) is not None]
    if lost:
        return lost
    layers = [layer.cls for layer in _app().user_middleware]
    lost += [
        f"{STOCK_APP}: our {what} is not in front of the routes. Fix: seams/http.py install_http"
        for layer, what in ((DlmMiddleware, "layer"), (GovernedCors, "CORS layer"))
        if layer not in layers
    ]
    lost += [
        f"{seam.target}: our hook is not in force. Lost: {seam.why}. Fix: {seam.adapter}"
        for seam in HTTP_SEAMS
        if seam.kind is Kind.HOOK and not hasattr(pkgutil.resolve_name(seam.target), "__wrapped__")
    ]
    return lost


def run_uvicorn(original: Callable[..., None], app: Any, *args: Any, **kwargs: Any) -> None:
    """Start SGLang's HTTP workers on our app, which loads the plugins before it hands out SGLang's."""
    if isinstance(app, str) and app.startswith("sglang.") and app != IMPORT_NAME:
        raise SeamError([f"{UVICORN_RUN}: HTTP workers would start on {app}, not on {IMPORT_NAME}"])
    original(WORKER_APP if app == IMPORT_NAME else app, *args, **kwargs)


def run_granian(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Refuse HTTP/2 with several HTTP workers: they would start without our layer."""
    if kwargs.get("tokenizer_worker_num", 1) > 1 and http_requests.is_ours():
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


def _openapi(original: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """SGLang's schema with our fields; FastAPI keeps what the original made, so ours is made once too."""

    def openapi() -> dict[str, Any]:
        schema = original()
        return with_our_fields(schema) if http_requests.front() is not None else schema

    return openapi


def _invalid_body(original: Callable[..., Any] | None) -> Callable[..., Any]:
    """The handler for bodies of the wrong shape: ours on our routes, SGLang's elsewhere."""
    if original is None:
        raise SeamError([f"{STOCK_APP}: SGLang's handler of invalid bodies is gone. Fix: seams/http.py _invalid_body"])

    async def handle(request: Any, error: Any) -> Any:
        from starlette.responses import JSONResponse

        if http_requests.front() is None or route_path(request.scope) not in ROUTES:
            return await original(request, error)
        return JSONResponse(error_body(of_validation(error.errors())), REFUSED_STATUS)

    return handle


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
            http_requests.front()
            http_requests.start_metrics()
            yield state

    return lifespan
