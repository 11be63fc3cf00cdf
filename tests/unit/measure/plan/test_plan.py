"""Whole plans: what they suggest is accepted by `serve`, and what ships is what they suggest."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from dlm_sglang.cli.main import main
from dlm_sglang.cli.reference import settings_schema
from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.plan import shipped
from dlm_sglang.measure.plan.gpu import GPUS, find_gpu
from dlm_sglang.measure.plan.plan import Question, as_json, make_plan
from dlm_sglang.measure.plan.shape import PUBLISHED, load_shape
from dlm_sglang.measure.plan.text import as_text, as_yaml
from dlm_sglang.setting_table import SETTINGS


def question(model: str, gpu: str, **changes: object) -> Question:
    shape = load_shape(model)
    return Question(shape, find_gpu(gpu), shape.dtype, (8, 16, 32), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("gpu", sorted(GPUS))
@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_a_plan_fits_its_gpu_or_says_that_the_model_does_not(
    model: str, gpu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        plan = make_plan(question(model, gpu))
    except SettingsError as error:
        assert load_shape(model).num_params * 2 > 0.7 * GPUS[gpu].memory_bytes
        assert "--tp-size" in str(error)
        return
    capacity = plan.capacity
    assert capacity.weight_bytes + capacity.kv_bytes + plan.runtime_bytes <= 1.02 * capacity.free_bytes
    assert plan.max_running_requests * plan.question.context <= capacity.kv_tokens
    path = tmp_path / "suggested.yaml"
    path.write_text(as_yaml(plan))
    assert main(["serve", "--dry-run", "--config", str(path)]) == 0
    jsonschema.validate(yaml.safe_load(path.read_text()), settings_schema())
    assert "computed, not measured" in as_text(plan)
    json.dumps(as_json(plan))


def test_several_gpus_share_weights_and_kv_heads() -> None:
    one, two = make_plan(question("nld-14b", "l40s")), make_plan(question("nld-14b", "l40s", tp_size=2))
    assert two.capacity.weight_bytes == one.capacity.weight_bytes // 2
    assert two.capacity.kv_bytes_per_token == one.capacity.kv_bytes_per_token // 2
    assert two.speed[0].tok_s_limit["AR"] > 1.9 * one.speed[0].tok_s_limit["AR"]


def test_the_block_follows_the_load() -> None:
    blocks = [
        make_plan(question("nld-8b", "h200", load=load, context=1024)).best_way.block_length for load in (1, 16, 64)
    ]
    assert blocks == [32, 16, 8]


def test_without_rates_there_are_no_speeds_and_self_speculation_is_suggested() -> None:
    plan = make_plan(question("bundled", "cpu", context=1024))
    assert (plan.speed, plan.crossovers) == ([], {})
    assert plan.best_way.mode == "self_speculation"
    assert "give --bandwidth-gb-s" in as_text(plan)


@pytest.mark.parametrize("name", shipped.files())
def test_shipped_configs_are_what_the_plan_suggests(name: str) -> None:
    text = (shipped.FOLDER / name).read_text(encoding="utf-8")
    assert text == shipped.files()[name], "run: make configs"


@pytest.mark.parametrize("path", sorted(shipped.FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_names_and_obeys_the_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={shipped.SCHEMA_NAME}\n")
    schema = json.loads((shipped.FOLDER / shipped.SCHEMA_NAME).read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(text), schema)
    assert set(schema["properties"]) == {setting.name for setting in SETTINGS}


def test_an_unknown_key_is_refused_by_schema_and_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("max_blok_length: 8\n")
    assert main(["serve", "--dry-run", "--config", str(path)]) == 2
    assert "did you mean max_block_length?" in capsys.readouterr().err
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(path.read_text()), settings_schema())
