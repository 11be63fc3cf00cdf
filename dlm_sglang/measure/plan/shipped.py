"""The files of `configs/` that `dlm-sglang plan` suggests: `python -m dlm_sglang.measure.plan.shipped` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dlm_sglang.cli.reference import settings_schema
from dlm_sglang.measure.plan.gpu import find_gpu
from dlm_sglang.measure.plan.plan import Question, make_plan
from dlm_sglang.measure.plan.shape import load_shape
from dlm_sglang.measure.plan.text import as_yaml

FOLDER = Path(__file__).parents[3] / "configs"
SCHEMA_NAME = "schema.json"
# File to model and GPU. The ones without a GPU in the name fit the smallest common GPU, and larger ones too.
SHIPPED: Mapping[str, tuple[str, str]] = {
    "nld-3b.yaml": ("nld-3b", "l4"),
    "nld-3b-rtx-4090.yaml": ("nld-3b", "rtx-4090"),
    "nld-3b-l40s.yaml": ("nld-3b", "l40s"),
    "nld-8b.yaml": ("nld-8b", "h100"),
    "nld-8b-l40s.yaml": ("nld-8b", "l40s"),
    "nld-8b-a100-80gb.yaml": ("nld-8b", "a100-80gb"),
    "nld-8b-h200.yaml": ("nld-8b", "h200"),
    "nld-14b.yaml": ("nld-14b", "h100"),
    "nld-14b-l40s.yaml": ("nld-14b", "l40s"),
    "nld-14b-h200.yaml": ("nld-14b", "h200"),
}


def files() -> dict[str, str]:
    """Every generated file of `configs/`, by name."""
    made = {SCHEMA_NAME: json.dumps(settings_schema(), indent=1) + "\n"}
    for name, (model, gpu) in SHIPPED.items():
        shape = load_shape(model)
        question = Question(shape, find_gpu(gpu), shape.dtype, block_lengths=(8, 16, 32))
        made[name] = as_yaml(make_plan(question))
    return made


def write(folder: Path = FOLDER) -> None:
    """Write them all."""
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
