"""Prompt sets: fixed, read from a file, or made to a length."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_sglang.bundled.tasks import split_of
from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.prompts import load_prompts


def test_bundled_prompts_are_held_out_and_always_the_same() -> None:
    prompts = load_prompts("bundled", 32)
    assert prompts.digest == load_prompts("bundled", 32).digest != load_prompts("bundled", 33).digest
    assert all(split_of(body["messages"][0]["content"]) == "held-out" for body in prompts.bodies)  # type: ignore[index]
    assert prompts.take(2, start=len(prompts.bodies)) == list(prompts.bodies[:2])


def test_a_file_holds_chats_prompts_or_strings(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}\n\n{"prompt": "b"}\n"c"\n')
    bodies = load_prompts(str(path), 9).bodies
    assert [body["messages"][-1]["content"] for body in bodies] == ["a", "b", "c"]  # type: ignore[index]
    assert [body["max_tokens"] for body in bodies] == [5, 9, 9]


def test_synthetic_prompts_have_their_lengths() -> None:
    body = load_prompts("synthetic:20,7", 9).bodies[0]
    assert len(body["messages"][0]["content"].split()) == 20  # type: ignore[index]
    assert (body["max_tokens"], body["ignore_eos"]) == (7, True)


@pytest.mark.parametrize("line", ["{}", "[1]", "{", '{"prompt": 3}'])
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'"fine"\n{line}\n')
    with pytest.raises(SettingsError, match=r"p\.jsonl:2"):
        load_prompts(str(path), 9)


@pytest.mark.parametrize("source", ["synthetic:1", "synthetic:a,b", "/nowhere.jsonl"])
def test_a_set_that_does_not_exist_is_refused(source: str) -> None:
    with pytest.raises(SettingsError):
        load_prompts(source, 9)
