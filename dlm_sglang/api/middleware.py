"""The ASGI layer in front of SGLang's own routes: checks and translates requests, reports what ran.

Nothing is buffered but the request's body, which SGLang's handlers read whole anyway. Streams are
passed on piece by piece, and a disconnect reaches SGLang as it would without this layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus

import orjson

from dlm_sglang.api import model_names, playground, report
from dlm_sglang.api.asgi import (
    App,
    Receive,
    Scope,
    Send,
    read_body,
    replay,
    route_path,
    send_error,
    send_whole,
    with_length,
)
from dlm_sglang.api.carried import unpacked
from dlm_sglang.api.front import Front
from dlm_sglang.api.guard import OpenRequests, Told, client_of, within
from dlm_sglang.api.reporter import Capture, Reporter
from dlm_sglang.api.shapes import check_shapes
from dlm_sglang.api.size import check_size
from dlm_sglang.api.translate import translate_generate, translate_openai
from dlm_sglang.errors import RequestError, shown
from dlm_sglang.params import ServerLimits

logger = logging.getLogger(__name__)

Translate = Callable[[Mapping[str, object], ServerLimits], dict[str, object]]

ROUTES: Mapping[str, Translate] = {
    "/v1/chat/completions": translate_openai,
    "/v1/completions": translate_openai,
    "/invocations": translate_openai,
    "/generate": translate_generate,
}
METHODS = frozenset({"POST", "PUT"})
# Routes that make the model work, beside ours: they have their own shapes and the same limits.
_WORK_PREFIXES = ("/v1/", "/api/", "/vertex_generate")


class DlmMiddleware:
    """Give SGLang's routes our request parameters, our limits and our part of the response.

    Args:
        app: the application behind this layer.
        front: what stands behind it, or None while the server runs another decode worker; then this
            layer does nothing.
        refused: called with the code of each request that is refused here.
    """

    def __init__(self, app: App, front: Callable[[], Front | None], refused: Callable[[str], None] | None = None):
        self.app = app
        self.front = front
        self.refused = refused or (lambda code: None)
        self.open_requests = OpenRequests()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        front = self.front() if scope["type"] == "http" else None
        if front is None:
            await self.app(scope, receive, send)
        elif scope.get("method") in METHODS:
            await self._post(scope, receive, send, front)
        elif scope.get("method") == "GET":
            await self._get(scope, receive, send, front)
        else:
            await self.app(scope, receive, send)

    async def _get(self, scope: Scope, receive: Receive, send: Send, front: Front) -> None:
        path = route_path(scope)
        if path == playground.PATH and front.settings.playground:
            await playground.serve(scope, send)
        elif path == model_names.MODELS_PATH:
            await self._models(scope, receive, send, front, None)
        elif path.startswith(f"{model_names.MODELS_PATH}/{front.served_model_name}:"):
            await self._models(scope, receive, send, front, path[len(model_names.MODELS_PATH) + 1 :])
        else:
            await self.app(scope, receive, send)

    async def _models(self, scope: Scope, receive: Receive, send: Send, front: Front, name: str | None) -> None:
        """SGLang's answer about its model, with the virtual names; about one of them if `name` says so."""
        served = front.served_model_name
        if name is not None:
            try:
                model_names.split_name(name, served)
            except RequestError as error:
                await self._refuse(send, error)
                return
            path = str(scope.get("root_path", "")) + f"{model_names.MODELS_PATH}/{served}"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        capture = Capture()
        await self.app(scope, receive, capture)
        body = capture.body
        if capture.status == HTTPStatus.OK and name is None:
            body = model_names.with_virtual_cards(body, served)
        elif capture.status == HTTPStatus.OK and name is not None:
            body = model_names.virtual_card(body, name, served)
        kept = [(key, value) for key, value in capture.headers if key.lower() != b"content-length"]
        await send_whole(send, capture.status, kept, body)

    async def _post(self, scope: Scope, receive: Receive, send: Send, front: Front) -> None:
        path = route_path(scope)
        translate = ROUTES.get(path)
        is_work = translate is not None or path.startswith(_WORK_PREFIXES)
        settings = front.settings
        limit = settings.max_concurrent_requests_per_key if is_work else None
        try:
            with self.open_requests.one_of(client_of(scope) if limit else "", limit) as done:
                body = await read_body(receive, scope, settings.max_request_bytes)
                if body is None:
                    return
                if translate is not None:
                    body = _translated(body, translate, front)
                    scope["headers"] = with_length(scope, len(body))
                current = report.Collector()
                told = Told(_reporter(send, current, path), done)
                run = self._run(scope, replay(body, receive), told, current)
                await within(settings.request_timeout_s if is_work else None, run, told)
        except RequestError as error:
            await self._refuse(send, error)

    async def _run(self, scope: Scope, receive: Receive, send: Send, current: report.Collector) -> None:
        token = report.collector.set(current)
        try:
            await self.app(scope, receive, send)
        finally:
            report.collector.reset(token)

    async def _refuse(self, send: Send, error: RequestError) -> None:
        logger.info("refused a request: %s (%s)", error.code, error.param)
        self.refused(error.code)
        await send_error(send, error)


def _reporter(send: Send, current: report.Collector, path: str) -> Send:
    if path not in ROUTES:
        return send
    return Reporter(send, current, tells_what_ran=ROUTES[path] is not translate_generate)


def _translated(body: bytes, translate: Translate, front: Front) -> bytes:
    """The body for SGLang; what is not JSON stays as it is, for SGLang to refuse.

    Raises:
        RequestError: the body is JSON and no object, which SGLang would stumble over, or a field is refused.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(fields, dict):
        raise RequestError(f"the body must be a JSON object, got {shown(fields)}", param=None, code="invalid-body")
    if translate is translate_openai:
        check_shapes(fields)
        check_size(fields, front.settings.max_output_tokens)
        fields = unpacked(fields)
        fields = model_names.resolve_model(fields, front.served_model_name)
    return orjson.dumps(translate(fields, front.limits))
