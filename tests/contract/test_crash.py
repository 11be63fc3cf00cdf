"""SGLang waits after a crash only for dumps that can come."""

from __future__ import annotations

import pytest
from sglang.srt.environ import envs

from dlm_sglang.seams import crash


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (crash._CORE_DUMPS_ON, crash._CORE_DUMP, crash._STACK_DUMP):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("has_tool", [True, False])
@pytest.mark.parametrize("can_dump_cores", [True, False])
def test_only_what_can_come_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, has_tool: bool, can_dump_cores: bool
) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/py-spy" if has_tool else None)
    if can_dump_cores:
        monkeypatch.setenv(crash._CORE_DUMPS_ON, "1")
    crash.end_soon_after_a_crash()
    assert envs.SGLANG_PYSPY_DUMP_BEFORE_CRASH.get() is has_tool
    assert envs.SGLANG_CUDA_COREDUMP_BEFORE_CRASH.get() is can_dump_cores


def test_what_the_operator_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    for name in (crash._CORE_DUMP, crash._STACK_DUMP):
        monkeypatch.setenv(name, "1")
    crash.end_soon_after_a_crash()
    assert envs.SGLANG_PYSPY_DUMP_BEFORE_CRASH.get() is True
    assert envs.SGLANG_CUDA_COREDUMP_BEFORE_CRASH.get() is True
