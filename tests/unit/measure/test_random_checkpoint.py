"""A random checkpoint has the published format: the reference loads it, and its size is the plan's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.plan.shape import PUBLISHED, load_shape
from dlm_sglang.measure.random_checkpoint import ROPE, write_random_checkpoint, write_shape
from dlm_sglang.reference.model import load_model

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1088,
}


def _write(folder: Path, seed: int = 0, *, has_drafter: bool = True) -> Path:
    return write_shape(folder, SMALL, ROPE, has_drafter=has_drafter, seed=seed, say=lambda line: None)


def test_reference_loads_every_tensor(tmp_path: Path) -> None:
    folder = _write(tmp_path / "small")
    model = load_model(folder)
    logits, _ = model.forward(torch.tensor([[5, 6, 7]]), torch.arange(3)[None], torch.ones(1, 3, 3).tril().bool(), None)
    assert logits.shape == (1, 3, 1088)
    assert bool(torch.isfinite(logits).all())
    shape = load_shape(str(folder))
    assert shape.num_params == sum(p.numel() for name, p in model.named_parameters() if "lora" not in name)
    assert shape.lora_rank == 128


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    first, second, third = (_write(tmp_path / str(number), seed) for number, seed in enumerate((1, 1, 2)))
    file = "model-00002-of-00003.safetensors"
    assert (first / file).read_bytes() == (second / file).read_bytes()
    assert (first / file).read_bytes() != (third / file).read_bytes()


def test_folder_in_use_and_unknown_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(SettingsError, match="is not empty"):
        _write(tmp_path)
    with pytest.raises(SettingsError, match=f"one of {', '.join(PUBLISHED)}"):
        write_random_checkpoint(tmp_path / "new", "nld-9b")
