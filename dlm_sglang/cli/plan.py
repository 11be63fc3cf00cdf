"""`dlm-sglang plan`: what fits on a GPU, how fast it can be, and the settings that follow."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_sglang.errors import SettingsError
from dlm_sglang.setting_table import BUNDLED

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

    from dlm_sglang.measure.plan.plan import Question
    from dlm_sglang.measure.plan.roofline import Yield


def add_parser(commands: Commands) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "plan",
        help="compute what fits on a GPU and how fast it can be",
        description="Memory, largest concurrency, speed bounds by mode and a settings file, from a config.json and a "
        "GPU. Nothing is run: the numbers are computed from a roofline.",
    )
    parser.add_argument("--model", default=BUNDLED, help="folder, config.json, bundled, nld-3b, nld-8b or nld-14b")
    parser.add_argument("--gpu", default="h100", help="name of a known GPU, cpu, or custom (default: h100)")
    parser.add_argument("--memory-gib", type=float, metavar="X", help="free memory, in place of the table's")
    parser.add_argument("--bandwidth-gb-s", type=float, metavar="X", help="measured copy rate, read and write counted")
    parser.add_argument("--tflop-s", type=float, metavar="X", help="measured rate of a large 16-bit GEMM")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's")
    parser.add_argument("--tp-size", type=int, default=1, metavar="N")
    parser.add_argument("--page-size", type=int, default=1, metavar="N")
    parser.add_argument("--block-length", type=int, nargs="+", metavar="N", help="default: 8 up to the checkpoint's")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 8192, 32768], metavar="N")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64, 128], metavar="N")
    parser.add_argument("--load", type=int, default=8, metavar="N", help="requests at a time that you expect")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a typical request (default: 4096)")
    parser.add_argument("--accept-length", nargs="+", metavar="BLOCK=X", help="measured, e.g. 16=9.5 32=11.9")
    parser.add_argument("--diffusion-tpf", type=float, metavar="X", help="measured tokens per forward of diffusion")
    parser.add_argument("--mem-fraction-static", type=float, metavar="X", help="default: chosen")
    parser.add_argument("--max-running-requests", type=int, metavar="N", help="default: chosen")
    parser.add_argument("--max-total-tokens", type=int, metavar="N", help="cap of the KV pool, as SGLang's flag")
    parser.add_argument("--url", help="a running server of this model: compare its KV pool with the plan's")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--yaml", action="store_true", help="print the suggested settings only")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG: memory, concurrency and speed")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Print the plan, or the comparison with a running server.

    Raises:
        SettingsError: a flag contradicts another, or the model does not fit.
    """
    from dlm_sglang.measure.plan import check, plan, text

    if arguments.url is not None:
        found = check.compare_with_server(arguments.url, arguments.model)
        print(json.dumps(found.as_json()) if arguments.json else found.as_text())
        return 0 if found.agrees else 1
    answer = plan.make_plan(_question(arguments))
    if arguments.plot is not None:
        from dlm_sglang.measure.plots import plan as plots

        plots.save(answer, arguments.plot)
        print(f"wrote {arguments.plot}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({**plan.as_json(answer), "settings": text.as_yaml(answer)}, indent=1))
    else:
        print(text.as_yaml(answer) if arguments.yaml else text.as_text(answer), end="")
    return 0


def _question(arguments: argparse.Namespace) -> Question:
    from dlm_sglang.measure.plan.gpu import CPU, find_gpu
    from dlm_sglang.measure.plan.plan import Question
    from dlm_sglang.measure.plan.shape import load_shape

    gpu = find_gpu(arguments.gpu, arguments.memory_gib, arguments.bandwidth_gb_s, arguments.tflop_s)
    shape = load_shape(arguments.model)
    blocks = arguments.block_length or [length for length in (8, 16, 32, 64) if length <= max(8, shape.block_length)]
    context = min(arguments.context or 4096, shape.context_length)
    for name, values in (("--block-length", blocks), ("--contexts", arguments.contexts), ("--load", [arguments.load])):
        if min(values) < 1:
            raise SettingsError(f"{name} must be at least 1, got {min(values)}", code="flag-out-of-range")
    return Question(
        shape=shape,
        gpu=gpu,
        dtype=arguments.dtype or ("float32" if gpu.name == CPU else shape.dtype),
        block_lengths=tuple(blocks),
        contexts=tuple(sorted({min(context, shape.context_length) for context in arguments.contexts})),
        concurrencies=tuple(arguments.concurrency),
        gain=_gain(arguments),
        load=arguments.load,
        context=context,
        tp_size=arguments.tp_size,
        page_size=arguments.page_size,
        mem_fraction_static=arguments.mem_fraction_static,
        max_running_requests=arguments.max_running_requests,
        max_total_tokens=arguments.max_total_tokens,
    )


def _gain(arguments: argparse.Namespace) -> Yield:
    from dlm_sglang.measure.plan.roofline import ACCEPT_LENGTHS, DIFFUSION_TPF, Yield

    accept_lengths = dict(ACCEPT_LENGTHS)
    if arguments.accept_length:
        accept_lengths = {}
        for pair in arguments.accept_length:
            block, _, length = pair.partition("=")
            try:
                accept_lengths[int(block)] = float(length)
            except ValueError:
                raise SettingsError(
                    f"--accept-length must be BLOCK=X, got {pair!r}", code="flag-malformed", hint="e.g. 32=11.9"
                ) from None
    return Yield(accept_lengths, arguments.diffusion_tpf or DIFFUSION_TPF)
