"""The schemas are schemas, and the driver tells a wrong answer from a right one."""

from __future__ import annotations

import json

import jsonschema
import pytest

from dlm_sglang.measure.json_schemas.drive import MODES, TEMPERATURES, Outcome, Probe, probes, problem_of
from dlm_sglang.measure.json_schemas.schemas import SCHEMAS

PROBE = Probe(1, "person", "diffusion", 0.0, "hi")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one_and_not_everything_follows_it(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert (
        sum(problem_of(json.dumps(value), SCHEMAS[name]) is None for value in ({}, [], "", 1e9, "some other text")) == 0
    )


def test_there_are_enough_schemas_and_every_mode_meets_each_of_them() -> None:
    assert len(SCHEMAS) >= 20
    asked = probes(2000)
    assert len({(probe.schema_name, probe.mode, probe.temperature) for probe in asked}) == len(SCHEMAS) * len(
        MODES
    ) * len(TEMPERATURES)
    assert len({probe.number for probe in asked}) == 2000
    assert {probe.is_streamed for probe in asked} == {True, False}


def test_an_answer_counts_only_whole_and_right() -> None:
    outcome = Outcome()
    assert outcome.add(PROBE, "stop", '{"name": "Anna", "age": 31}') is None
    for finish_reason, text, told in (
        ("stop", '{"name": "Anna", "age": 131}', "maximum"),
        ("stop", '{"name": "Anna"}', "required"),
        ("stop", '{"name": "Anna", "age": 31} and more', "no JSON"),
        ("length", '{"name": "An', "no JSON"),
        ("length", '{"name": "Anna", "age": 3}', "length"),
    ):
        problem = outcome.add(PROBE, finish_reason, text)
        assert problem is not None
        assert told in problem
    assert (outcome.valid, outcome.cut, len(outcome.wrong)) == (1, 2, 5)
