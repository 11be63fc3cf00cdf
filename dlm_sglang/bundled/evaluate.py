"""Measure a checkpoint on held-out prompts: `python -m dlm_sglang.bundled.evaluate [--n 300] [--json]`.

Greedy, float32, every mode. Prints one table row per setting: exact match, forwards, tokens per
forward and mean accept length. Forwards are denoise and commit forwards; neither the prefill nor
the one token that it gives are counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dlm_sglang.bundled import decode
from dlm_sglang.bundled.batches import encode
from dlm_sglang.bundled.rows import RowResult, Rows
from dlm_sglang.bundled.tasks import HELD_OUT_SEED, TASK_NAMES, Task, check, generate
from dlm_sglang.reference.model import NldModel, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUNDLED_FOLDER = Path(__file__).parent.parent / "assets" / "bundled"
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Setting:
    """One way to decode; `steps` is a step limit, or a threshold, in words."""

    mode: str
    block_length: int | None
    steps: str
    run: Callable[[Rows], list[RowResult]]


@dataclass(frozen=True)
class Measurement:
    """One row of the table, over all prompts."""

    mode: str
    block_length: int | None
    steps: str
    exact_match: float
    forwards: int
    tokens_per_forward: float
    mean_accept_length: float
    exact_match_by_task: dict[str, float]


def settings(has_lora: bool) -> list[Setting]:
    """All rows of the table; self-speculation also without the drafter, where there is one."""
    rows = [Setting("autoregressive", None, "", decode.autoregressive)]
    for block_length in (8, 16, 32):
        run = partial(decode.self_speculation, block_length=block_length)
        rows.append(Setting("self_speculation", block_length, "draft 1", run))
        if has_lora:
            without = partial(run, use_lora=False)
            rows.append(Setting("self_speculation", block_length, "draft 1, no LoRA", without))
    for block_length in (8, 16, 32):
        run = partial(decode.diffusion, block_length=block_length, confidence_threshold=0.9)
        rows.append(Setting("diffusion", block_length, "threshold 0.9", run))
    for num_steps in (8, 4, 2, 1):
        run = partial(decode.diffusion, block_length=16, max_denoising_steps=num_steps)
        rows.append(Setting("diffusion", 16, f"{num_steps} step{'s' if num_steps > 1 else ''}", run))
    return rows


def measure(model: NldModel, tokenizer: PreTrainedTokenizerBase, tasks: list[Task], setting: Setting) -> Measurement:
    """Decode all tasks in one setting."""
    prompts = [example.prompt_ids for example in encode(tokenizer, tasks)]
    with torch.inference_mode():
        results = setting.run(Rows(model, prompts, MAX_NEW_TOKENS))
    right: dict[str, list[bool]] = {name: [] for name in TASK_NAMES}
    for task, result in zip(tasks, results, strict=True):
        ended = result.token_ids[-1] == model.config.eos_token_id
        text = tokenizer.decode(result.token_ids[:-1] if ended else result.token_ids)
        right[task.name].append(ended and check(task, str(text)))
    forwards = sum(result.num_forwards for result in results)
    accept_lens = [length for result in results for length in result.accept_lens]
    return Measurement(
        mode=setting.mode,
        block_length=setting.block_length,
        steps=setting.steps,
        exact_match=sum(map(sum, right.values())) / len(tasks),
        forwards=forwards,
        tokens_per_forward=sum(accept_lens) / forwards,
        mean_accept_length=sum(accept_lens) / len(accept_lens),
        exact_match_by_task={name: sum(hits) / len(hits) for name, hits in right.items() if hits},
    )


def table_row(row: Measurement) -> str:
    """One line of the printed table."""
    return (
        f"{row.mode:<17} {row.block_length or '':>5}  {row.steps:<17} {row.exact_match:>11.3f} {row.forwards:>9} "
        f"{row.tokens_per_forward:>6.2f} {row.mean_accept_length:>14.2f}"
    )


TABLE_HEAD = (
    f"{'mode':<17} {'block':>5}  {'steps':<17} {'exact match':>11} {'forwards':>9} {'TPF':>6} {'accept length':>14}"
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dlm_sglang.bundled.evaluate", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=BUNDLED_FOLDER, help="checkpoint folder (default: the bundled one)"
    )
    parser.add_argument("--n", type=int, default=300, help="number of held-out prompts (default: %(default)s)")
    parser.add_argument("--tasks", action="store_true", help="also print the exact match of every task")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args(argv)
    # Only the command needs it: importing it costs seconds, and tests bring a tokenizer of their own.
    from transformers import AutoTokenizer

    model = load_model(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tasks = generate("held-out", HELD_OUT_SEED, args.n)
    rows = []
    if not args.json:
        print(TABLE_HEAD)
    for setting in settings(model.has_lora):
        row = measure(model, tokenizer, tasks, setting)
        rows.append(row)
        if not args.json:
            print(table_row(row), flush=True)
            if args.tasks:
                print("    " + "  ".join(f"{name} {share:.2f}" for name, share in row.exact_match_by_task.items()))
    if args.json:
        json.dump({"n": args.n, "max_new_tokens": MAX_NEW_TOKENS, "rows": [asdict(row) for row in rows]}, sys.stdout)
        print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
