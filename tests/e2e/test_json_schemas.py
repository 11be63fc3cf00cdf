"""Answers under JSON schemas follow them, in every mode; `python -m dlm_sglang.measure.json_schemas` asks for more."""

from __future__ import annotations

import asyncio

from dlm_sglang.measure.json_schemas.drive import FLAGS, MODES, drive, probes
from dlm_sglang.measure.json_schemas.schemas import SCHEMAS
from tests.e2e.conftest import FRONT_FLAGS, SERVED_NAME
from tests.e2e.server import Server


def test_every_schema_is_followed_in_every_mode(front_server: Server) -> None:
    assert set(FLAGS) <= set(FRONT_FLAGS)
    asked = probes(len(SCHEMAS) * len(MODES))
    assert {(probe.schema_name, probe.mode) for probe in asked} == {(name, mode) for name in SCHEMAS for mode in MODES}
    outcomes = asyncio.run(drive(front_server.url, SERVED_NAME, asked, concurrency=6))
    wrong = [line for outcome in outcomes.values() for line in outcome.wrong]
    assert not wrong, "\n".join(wrong)
    assert sum(outcome.valid for outcome in outcomes.values()) == len(asked)
