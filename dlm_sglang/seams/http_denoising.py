"""Provisional blocks on their way through SGLang's tokenizer manager to the streams that asked for them.

SGLang knows of no output without tokens. Where the HTTP side lags it keeps the newest of the outputs that wait; the
blocks are kept beside them, so that they keep their place among the tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from dlm_sglang.api import denoising, report
from dlm_sglang.params import DENOISING_KEY

_ATTRIBUTE = "dlm_watched"
_CACHED_PIECES = 1 << 16
# Blocks that wait for a client who does not read; older ones are dropped.
_MOST_WAITING = 128


@dataclass
class _Watched:
    """What is kept with SGLang's state of a watched request.

    Attributes:
        waiting: tokens of the answer before each block, and the block, oldest first.
        lacks_tokens: SGLang had outputs, all of them without tokens.
    """

    waiting: deque[tuple[int, denoising.Block]] = field(default_factory=lambda: deque(maxlen=_MOST_WAITING))
    lacks_tokens: bool = False


def note_block(meta_info: dict[str, Any], state: Any, block: denoising.Block | None) -> None:
    """Add a block, if there is one, to what is told of the request with its next output.

    Args:
        meta_info: of the output that came.
        state: SGLang's state of the request.
        block: what came with the output.
    """
    watched: _Watched | None = getattr(state, _ATTRIBUTE, None)
    if watched is None:
        if block is None:
            return
        watched = _Watched()
        setattr(state, _ATTRIBUTE, watched)
    num_tokens = meta_info.get("completion_tokens", 0)
    if block is not None:
        watched.waiting.append((num_tokens, block))
    meta_info[DENOISING_KEY] = watched.waiting
    _keep_first_token_open(state, watched, has_tokens=num_tokens > 0)


def _keep_first_token_open(state: Any, watched: _Watched, *, has_tokens: bool) -> None:
    """Let SGLang take the first token's time when it comes, not when the first block without tokens does."""
    if not has_tokens:
        watched.lacks_tokens = True
        state.ttft_observed, state.last_completion_tokens = True, 0
    elif watched.lacks_tokens:
        watched.lacks_tokens = False
        state.ttft_observed, state.time_stats.first_token_time = False, 0.0


async def with_blocks(outputs: AsyncIterator[Any], tokenizer: Any) -> AsyncIterator[Any]:
    """SGLang's outputs of a watched request, and its blocks where they belong.

    On the OpenAI routes blocks go straight into the response, before and behind what SGLang makes of the output; an
    output that only brought blocks is not shown to SGLang, unless it is the first, which begins the response.
    Elsewhere they are a list in `meta_info`.
    """
    current = report.collector.get()
    show = None if current is None else current.show_block
    decode = decoder(tokenizer)
    told: dict[int, int] = {}
    async for output in outputs:
        meta_info = output["meta_info"]
        earlier, later = _taken(meta_info, decode)
        if show is None:
            if earlier or later:
                meta_info[DENOISING_KEY] = [*earlier, *later]
            yield output
            continue
        index, num_tokens = output.get("index", 0), meta_info["completion_tokens"]
        for block in earlier:
            await show(index, meta_info["id"], block)
        if told.get(index) != num_tokens or not later:
            told[index] = num_tokens
            yield output
        for block in later:
            await show(index, meta_info["id"], block)


def _taken(meta_info: dict[str, Any], decode: denoising.Decode) -> tuple[list[denoising.Block], list[denoising.Block]]:
    """The blocks that wait, with text: those before the output's last tokens, and those behind them."""
    waiting: deque[tuple[int, denoising.Block]] = meta_info.pop(DENOISING_KEY, None) or deque()
    is_end = meta_info.get("finish_reason") is not None
    split: tuple[list[denoising.Block], list[denoising.Block]] = ([], [])
    while waiting:
        num_tokens, block = waiting.popleft()
        is_later = not is_end and num_tokens == meta_info["completion_tokens"]
        split[is_later].append(denoising.with_text(block, decode))
    return split


@cache
def decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """Text of token ids, special tokens included; the same tokens come again and again."""

    @lru_cache(_CACHED_PIECES)
    def decoded(token_ids: tuple[int, ...]) -> str:
        text: str = tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text

    return lambda token_ids: decoded(tuple(token_ids))
