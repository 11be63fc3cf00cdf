"""`stream_denoising`: a block while it is denoised, in the form that clients get.

The decode worker tells `step`, `positions`, `token_ids` and `is_final` of a block (see `decode/watch.py`); text is
added here. On the OpenAI routes each block is an event of its own, a chunk whose delta is empty: clients that know
nothing of it add nothing to their text. `/generate` has the blocks in `meta_info`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import orjson

from dlm_sglang.errors import RequestError
from dlm_sglang.params import DENOISING_KEY, FLAT_KEY

# What a decoder gives for bytes that are no whole character.
_BROKEN = "\ufffd"

Block = dict[str, object]
Decode = Callable[[list[int]], str]


def require_stream(sampling: object, *, is_stream: bool) -> None:
    """Refuse `stream_denoising` where nothing is streamed.

    Args:
        sampling: SGLang's sampling parameters with our fields resolved, one or a list.
        is_stream: the answer is streamed.

    Raises:
        RequestError: a block would have no stream to go to.
    """
    if not is_stream and is_watched(sampling):
        raise RequestError(
            "stream_denoising is honoured in streams only, got stream false",
            param="stream_denoising",
            code="parameter-not-honoured",
            hint="send stream true or leave stream_denoising out",
        )


def is_watched(sampling: object) -> bool:
    """Whether any of the prompts of these sampling parameters streams its denoising."""
    for one in sampling if isinstance(sampling, list) else [sampling]:
        custom = one.get("custom_params") if isinstance(one, Mapping) else None
        flat = custom.get(FLAT_KEY) if isinstance(custom, Mapping) else None
        if isinstance(flat, Mapping) and flat.get("stream_denoising"):
            return True
    return False


def with_text(block: Mapping[str, object], decode: Decode) -> Block:
    """The block with `tokens`, the text of each position; None is still a mask."""
    token_ids = block["token_ids"]
    return {**block, "tokens": pieces(token_ids if isinstance(token_ids, list) else [], decode)}


def pieces(token_ids: Sequence[int | None], decode: Decode) -> list[str | None]:
    """The text of each token.

    A character that several neighbouring tokens make stands whole at the last of them, the others are empty; one
    whose tokens are not all there yet is U+FFFD at each.

    Args:
        token_ids: None is a mask, and stays None.
        decode: text of token ids, special tokens included.
    """
    texts = [None if token_id is None else decode([token_id]) for token_id in token_ids]
    for begin, end in _broken_runs(texts):
        # Shortest first: what is behind a whole character may be the begin of another.
        done = begin
        for stop in range(begin + 2, end + 1):
            whole = decode([token_id for token_id in token_ids[done:stop] if token_id is not None])
            if _BROKEN not in whole:
                texts[done:stop] = ["" for _ in range(done, stop - 1)] + [whole]
                done = stop
    return texts


def _broken_runs(texts: Sequence[str | None]) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of neighbours that are no whole characters by themselves."""
    is_broken = [False, *(text is not None and _BROKEN in text for text in texts), False]
    edges = [index for index, (before, now) in enumerate(pairwise(is_broken)) if before != now]
    yield from zip(edges[::2], edges[1::2], strict=True)


def chunk_like(event: bytes, index: int, request_id: str, block: Block) -> bytes:
    """An event with a block, which looks like the stream's ordinary chunks and says nothing new.

    Args:
        event: any ordinary event of the stream.
        index: of the choice.
        request_id: the `id` of the choice's chunks.
        block: what it tells.
    """
    chunk = _read(event)
    choice: dict[str, object] = {"index": index, "logprobs": None, "finish_reason": None}
    if is_chat_chunk(event):
        choice["delta"] = {}
    else:
        choice["text"] = ""
    told = {
        "id": request_id,
        "object": chunk.get("object"),
        "created": chunk.get("created"),
        "model": chunk.get("model"),
        "choices": [choice],
        DENOISING_KEY: block,
    }
    return b"data: " + orjson.dumps(told) + b"\n\n"


def is_chat_chunk(event: bytes) -> bool:
    """Whether an event is a chunk of a chat, not of a completion."""
    return _read(event).get("object") == "chat.completion.chunk"


def _read(event: bytes) -> dict[str, object]:
    chunk = orjson.loads(event.removeprefix(b"data: "))
    return chunk if isinstance(chunk, dict) else {}
