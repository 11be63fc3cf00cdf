"""Provisional blocks as clients get them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import dlm_sglang
from dlm_sglang.api.denoising import chunk_like, is_watched, pieces, require_stream, with_text
from dlm_sglang.errors import RequestError

TOKENIZER = Tokenizer.from_file(str(Path(dlm_sglang.__file__).parent / "assets" / "bundled" / "tokenizer.json"))
BLOCK: dict[str, object] = {"step": 2, "positions": [3, 4], "token_ids": [321, None], "is_final": [True, False]}
WATCHED = {"custom_params": {"dlm": {"stream_denoising": True}}}


def decode(token_ids: list[int]) -> str:
    return str(TOKENIZER.decode(token_ids, skip_special_tokens=False))


def ids_of(text: str) -> list[int | None]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=12))
def test_the_pieces_of_a_whole_text_are_the_text(text: str) -> None:
    made = pieces(ids_of(text), decode)
    assert "".join(piece or "" for piece in made) == decode([one for one in ids_of(text) if one is not None])


def test_a_character_of_several_tokens_stands_at_the_last_of_them() -> None:
    euro = ids_of("€")
    assert len(euro) == 3, "the bundled tokenizer has this character as bytes"
    assert pieces([*ids_of("a"), *euro, *euro, *ids_of("b")], decode) == ["a", "", "", "€", "", "", "€", "b"]


def test_a_character_whose_tokens_are_not_all_there_is_told_so() -> None:
    euro = ids_of("€")
    assert pieces([*euro[:2], None], decode) == ["\ufffd", "\ufffd", None]
    assert pieces([euro[0], None, euro[2], *euro], decode) == ["\ufffd", None, *["\ufffd"] * 4]


def test_masks_stay_masks_and_special_tokens_have_their_names() -> None:
    end = TOKENIZER.token_to_id("<|im_end|>")
    assert pieces([None, end, None], decode) == [None, "<|im_end|>", None]
    assert pieces([], decode) == []


def test_any_ids_have_one_piece_each() -> None:
    rng = random.Random(5)
    for _ in range(200):
        token_ids = [rng.choice([None, rng.randrange(TOKENIZER.get_vocab_size())]) for _ in range(32)]
        made = pieces(token_ids, decode)
        assert [piece is None for piece in made] == [token_id is None for token_id in token_ids]


def test_a_block_gets_its_text_and_keeps_its_ids() -> None:
    assert with_text(BLOCK, decode) == {**BLOCK, "tokens": [" ", None]}


@pytest.mark.parametrize(
    ("told", "choice"),
    [
        ({"object": "chat.completion.chunk", "choices": [{"delta": {"content": "a"}}]}, {"delta": {}}),
        ({"object": "text_completion", "choices": [{"text": "a"}]}, {"text": ""}),
    ],
)
def test_its_event_looks_like_the_ordinary_ones_and_adds_no_text(
    told: dict[str, object], choice: dict[str, object]
) -> None:
    event = b"data: " + json.dumps({"id": "x", "created": 7, "model": "m", **told}).encode()
    made = chunk_like(event, 1, "y", BLOCK)
    assert made.startswith(b"data: ")
    assert made.endswith(b"\n\n")
    assert json.loads(made.removeprefix(b"data: ")) == {
        "id": "y",
        "object": told["object"],
        "created": 7,
        "model": "m",
        "choices": [{"index": 1, "logprobs": None, "finish_reason": None, **choice}],
        "dlm_denoising": BLOCK,
    }


@pytest.mark.parametrize("sampling", [WATCHED, [{}, WATCHED]])
def test_blocks_without_a_stream_are_refused(sampling: object) -> None:
    assert is_watched(sampling)
    require_stream(sampling, is_stream=True)
    with pytest.raises(RequestError) as refused:
        require_stream(sampling, is_stream=False)
    assert (refused.value.param, refused.value.code) == ("stream_denoising", "parameter-not-honoured")
    assert refused.value.hint


@pytest.mark.parametrize("sampling", [None, {}, [], {"custom_params": None}, {"custom_params": {"dlm": {}}}, "x"])
def test_requests_that_watch_nothing_pass(sampling: object) -> None:
    assert not is_watched(sampling)
    require_stream(sampling, is_stream=False)
