"""The playground: one page that the server itself hands out; it loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from dlm_sglang.api.asgi import Headers, Scope, Send, send_whole

PATH = "/playground"
PAGE = Path(__file__).parents[1] / "assets" / "playground" / "index.html"
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


async def serve(scope: Scope, send: Send) -> None:
    """Answer with the page."""
    body, headers = page()
    await send_whole(send, 200, headers, body)


@cache
def page() -> tuple[bytes, Headers]:
    """The page and its headers: the browser runs what the page holds and talks to this server alone."""
    body = PAGE.read_bytes()
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for match in _INLINE.finditer(body):
        digest = base64.b64encode(hashlib.sha256(match[2]).digest()).decode()
        hashes[match[1].decode()].append(f"'sha256-{digest}'")
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}"
    )
    return body, [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]
