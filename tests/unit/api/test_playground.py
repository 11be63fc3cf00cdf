"""The page and its headers, without a server."""

from __future__ import annotations

import base64
import hashlib
import re

from dlm_sglang.api.playground import PAGE, page


def test_the_policy_allows_just_the_scripts_and_styles_of_the_page() -> None:
    body, headers = page()
    policy = dict(headers)[b"content-security-policy"].decode()
    inline = re.findall(rb"<(?:script|style)>(.*?)</(?:script|style)>", body, re.DOTALL)
    assert len(inline) == 2
    for text in inline:
        assert base64.b64encode(hashlib.sha256(text).digest()).decode() in policy
    assert "unsafe" not in policy


def test_the_page_has_no_inline_handlers_or_style_attributes() -> None:
    text = PAGE.read_text()
    assert not re.search(r"\son[a-z]+=", text)
    assert not re.search(r"\sstyle=", text)
