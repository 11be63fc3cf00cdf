"""Results on disk: what is finished stays, what differs is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.store import Store, read_results, refuse_differences

EQUAL = {"model": "m", "prompts": "p 1", "sampling": {"temperature": 0}}


def test_what_was_added_is_read_back_and_known(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.jsonl", EQUAL, {"machine": "x"}, resume=False)
    store.add({"setting": "a", "repetition": 0}, numbers={"tok_s": 1.0})
    results = read_results(store.path)
    assert (results.equal, results.about) == (EQUAL, {"machine": "x"})
    assert results.lines == tuple(store.lines)
    again = Store(store.path, EQUAL, {"machine": "y"}, resume=True)
    assert again.has({"setting": "a", "repetition": 0})
    assert not again.has({"setting": "a", "repetition": 1})


@given(cut=st.integers(1, 200))
def test_a_line_cut_off_by_a_crash_is_dropped_and_the_rest_kept(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "r.jsonl"
    store = Store(path, EQUAL, {}, resume=False)
    for number in range(3):
        store.add({"n": number}, numbers={"tok_s": float(number)})
    whole = path.read_bytes()
    last_start = whole.rfind(b"\n", 0, -1) + 1
    path.write_bytes(whole[: max(last_start, len(whole) - cut)])
    again = Store(path, EQUAL, {}, resume=True)
    assert [line["key"] for line in again.lines] == [{"n": 0}, {"n": 1}]
    again.add({"n": 2}, numbers={})
    assert len(read_results(path).lines) == 3


def test_runs_that_differ_are_refused_with_every_difference(tmp_path: Path) -> None:
    Store(tmp_path / "r.jsonl", EQUAL, {}, resume=False)
    other = {**EQUAL, "model": "n", "sampling": {"temperature": 1}}
    with pytest.raises(SettingsError, match=r"model: 'm' in .* 'n' in this run; sampling: ") as raised:
        Store(tmp_path / "r.jsonl", other, {}, resume=True)
    assert raised.value.exit_status == 2
    refuse_differences(EQUAL, dict(EQUAL), "a", "b")


@pytest.mark.parametrize("text", ["", "hello\n", '{"kind": "run", "format": 0}\n', "[1\n"])
def test_another_file_is_not_taken_for_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(SettingsError, match="not a results file"):
        read_results(path)
    with pytest.raises(SettingsError, match="cannot read"):
        read_results(tmp_path / "none")
