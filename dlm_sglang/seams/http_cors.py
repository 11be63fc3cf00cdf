"""CORS under our settings, in the place of SGLang's layer, which lets every web page in with credentials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlm_sglang.api.front import Front
from dlm_sglang.errors import SeamError
from dlm_sglang.seams.http_table import STOCK_APP


class GovernedCors:
    """SGLang's CORS layer while another algorithm decodes; ours with it, or none.

    Args:
        app: the application behind this layer.
        front: what stands behind it, or None while the server runs another decode worker.
        stock: SGLang's layer and its arguments.
    """

    def __init__(self, app: Any, front: Callable[[], Front | None], stock: tuple[Any, dict[str, Any]]) -> None:
        cors, arguments = stock
        self.app = app
        self.front = front
        self._stock = cors(app, **arguments)
        self._make: Callable[..., Any] = cors
        self._arguments = arguments
        self._governed: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        at = self.front()
        if at is None:
            await self._stock(scope, receive, send)
            return
        if self._governed is None:
            origins = at.settings.cors_origins
            arguments = {**self._arguments, "allow_origins": list(origins)}
            self._governed = self._make(self.app, **arguments) if origins else self.app
        await self._governed(scope, receive, send)


def govern_cors(app: Any, front: Callable[[], Front | None]) -> None:
    """Put our layer where SGLang's stands.

    Raises:
        SeamError: SGLang's layer is not there, so that nobody knows whether its routes are open to web pages.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware

    for place, layer in enumerate(app.user_middleware):
        if layer.cls is CORSMiddleware:
            app.user_middleware[place] = Middleware(GovernedCors, front=front, stock=(layer.cls, layer.kwargs))
            return
    raise SeamError([f"{STOCK_APP}: SGLang's CORS layer is gone. Fix: seams/http_cors.py"])
