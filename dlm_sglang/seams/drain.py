"""The end of a server that is told to stop: nothing new is begun, and what is left has a limited time.

SGLang goes on taking requests after SIGTERM and ends when, at a look every 5 s, none is in progress. Under load that is
never, and one long answer holds it for as long as the answer takes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from dlm_sglang.errors import RequestError
from dlm_sglang.settings import FrontSettings

logger = logging.getLogger(__name__)

# SGLang looks every 5 s, and waits up to 15 s for its schedulers.
LAST_S = 25.0


def on_sigterm(original: Callable[..., None], handler: Any, signum: Any = None, frame: Any = None) -> None:
    """Let SGLang begin to drain, and abort what is left when the time is up. Runs in the event loop."""
    manager = handler.tokenizer_manager
    was_draining = manager.gracefully_exit
    original(handler, signum, frame)
    limit_s = FrontSettings.from_env().drain_timeout_s
    if was_draining or limit_s is None:
        return
    # A response that never ends, such as to a client that reads nothing, would keep the HTTP process for ever.
    last = threading.Timer(limit_s + LAST_S, os._exit, (0,))
    last.daemon = True
    last.start()
    logger.info("draining: %d requests have %g s to end", len(manager.rid_to_state), limit_s)
    asyncio.get_running_loop().call_later(limit_s, _abort_the_rest, manager)


def refuse_while_draining(manager: Any) -> None:
    """Refuse a request that would begin while the server ends.

    Raises:
        RequestError: it ends.
    """
    if manager.gracefully_exit:
        raise RequestError(
            "the server is about to end and takes no more requests",
            param=None,
            code="server-draining",
            hint="ask another one, or again in a while",
        )


def _abort_the_rest(manager: Any) -> None:
    if manager.rid_to_state:
        logger.warning("draining: time is up, %d requests are aborted", len(manager.rid_to_state))
        manager.abort_request(abort_all=True)
