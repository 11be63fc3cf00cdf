"""Checks of the compiled kernels against references and float64, shared by the GPU tests and the benchmarks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dlm_kernels.ops.accept_prefix import launch as accept_launch
from dlm_kernels.ops.accept_prefix import reference as accept_reference
from dlm_kernels.ops.advance_rows import launch as advance_launch
from dlm_kernels.ops.advance_rows import reference as advance_reference
from dlm_kernels.ops.choose_token import SamplingRows
from dlm_kernels.ops.choose_token import launch as choose_launch
from dlm_kernels.ops.choose_token import reference as choose_reference
from dlm_kernels.ops.sample_token import filtered_probs
from dlm_kernels.ops.sample_token import launch as sample_launch
from dlm_kernels.ops.sample_token import reference as sample_reference
from dlm_kernels.ops.unmask_select import launch as unmask_launch
from dlm_kernels.ops.unmask_select import reference as unmask_reference
from dlm_kernels.testing.accept_rejection import make_case
from dlm_kernels.testing.advance_rows import make_round, make_state
from dlm_kernels.testing.unmask_block import Block, make_inputs

MASK_TOKEN_ID = 100
# Relative error of a confidence, and distance of a uniform number from an edge of the CDF.
MAX_CONFIDENCE_ERROR, MAX_CDF_DISTANCE = 3e-6, 2e-6

Result = dict[str, object]


def make_logits(num_rows: int, vocab_size: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """Logits of a model that is sure of some rows and not of others, in rows that are longer than the vocabulary."""
    generator = torch.Generator(device).manual_seed(seed)
    wide = torch.randn(num_rows, vocab_size + 16, generator=generator, device=device) * 2.5
    sure = torch.randint(0, vocab_size, (num_rows, 1), generator=generator, device=device)
    wide.scatter_(1, sure, torch.rand(num_rows, 1, generator=generator, device=device) * 30)
    return wide.to(dtype)[:, :vocab_size]


def make_sampling(num_rows: int, device: str, *, filtered: bool, seed: int = 0) -> SamplingRows:
    """Mixed parameters; some rows are greedy."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (num_rows,), generator=generator)].to(device)

    return SamplingRows(
        temperature=pick(0.0, 0.3, 0.7, 1.0, 2.0),
        top_k=pick(-1, -1, 1, 5, 50).long() if filtered else pick(-1).long(),
        top_p=pick(1.0, 0.99, 0.9, 0.5) if filtered else pick(1.0),
        min_p=pick(0.0, 0.0, 0.1) if filtered else pick(0.0),
        uniform=torch.rand(num_rows, dtype=torch.float64, generator=generator).to(device),
    )


def check_greedy(device: str, dtype: torch.dtype, num_rows: int, vocab_size: int) -> Result:
    """Token ids and confidences against float64."""
    logits = make_logits(num_rows, vocab_size, dtype, device)
    token_ids, confidence = choose_launch.choose_token(logits, excluded_token_id=MASK_TOKEN_ID)
    exact = logits.double()
    probs = torch.softmax(exact, dim=-1)
    exact[:, MASK_TOKEN_ID] = -torch.inf
    expected_ids = exact.argmax(dim=-1)
    expected = probs.gather(1, expected_ids[:, None])[:, 0]
    error = float(((confidence - expected).abs() / expected).max())
    is_equal = torch.equal(token_ids, expected_ids)
    return _result(f"greedy {dtype} {num_rows}x{vocab_size}", error, MAX_CONFIDENCE_ERROR, is_equal)


def check_draws(device: str, dtype: torch.dtype, num_rows: int, vocab_size: int, *, filtered: bool) -> Result:
    """Every draw lies, within the tolerance, where its uniform number falls in the reference's CDF."""
    logits = make_logits(num_rows, vocab_size, dtype, device)
    sampling = make_sampling(num_rows, device, filtered=filtered)
    token_ids, _ = choose_launch.choose_token(logits, excluded_token_id=MASK_TOKEN_ID, sampling=sampling)
    temperature = torch.where(sampling.temperature > 0, sampling.temperature, 1.0)
    filters = (sampling.top_k, sampling.top_p, sampling.min_p)
    probs = filtered_probs(logits, temperature, *filters, MASK_TOKEN_ID)
    end = probs.cumsum(dim=-1).gather(1, token_ids[:, None])[:, 0]
    begin = end - probs.gather(1, token_ids[:, None])[:, 0]
    distance = torch.maximum(begin - sampling.uniform, sampling.uniform - end).clamp(min=0.0)
    greedy, _ = choose_reference.choose_token(logits, excluded_token_id=MASK_TOKEN_ID)
    is_greedy = sampling.temperature == 0
    is_equal = torch.equal(token_ids[is_greedy], greedy[is_greedy])
    error = float(distance.masked_fill(is_greedy, 0.0).max())
    kind = "filtered" if filtered else "sampled"
    return _result(f"{kind} {dtype} {num_rows}x{vocab_size}", error, MAX_CDF_DISTANCE, is_equal)


def check_random_numbers(device: str) -> Result:
    """Bits of `uniform_from_seed`."""
    numbers = [torch.randint(-(2**62), 2**62, (999,), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    got = sample_launch.uniform_from_seed(*(value.to(device) for value in numbers)).cpu()
    return _result("random numbers", 0.0, 0.0, torch.equal(got, sample_reference.uniform_from_seed(*numbers)))


def check_unmask(device: str, num_rows: int, length: int) -> Result:
    """`unmask_block` against the reference, bit for bit."""
    rng = random.Random(length)
    blocks = [Block.drawn(length, 3, rng) for _ in range(num_rows)]
    got = unmask_launch.unmask_block(**make_inputs(blocks, device=device))
    expected = unmask_reference.unmask_block(**make_inputs(blocks))
    is_equal = all(torch.equal(value.cpu(), other) for value, other in zip(got, expected, strict=True))
    return _result(f"unmask {num_rows}x{length}", 0.0, 0.0, is_equal)


def check_prefix(device: str, num_rows: int, length: int) -> Result:
    """`accept_prefix` against the reference, bit for bit."""
    generator = torch.Generator().manual_seed(length)
    drafts = torch.randint(0, 2, (num_rows, length), generator=generator)
    targets = torch.where(torch.rand(num_rows, length, generator=generator) < 0.9, drafts, 1 - drafts)
    targets = torch.cat([targets, drafts[:, :1]], dim=1)
    counts = torch.randint(0, length + 1, (num_rows,), generator=generator)
    got = accept_launch.accept_prefix(*(value.to(device) for value in (drafts, targets, counts)))
    expected = accept_reference.accept_prefix(drafts, targets, counts)
    is_equal = all(torch.equal(value.cpu(), other) for value, other in zip(got, expected, strict=True))
    return _result(f"accept prefix {num_rows}x{length}", 0.0, 0.0, is_equal)


def check_rejection(device: str, num_rows: int, vocab_size: int, *, one_hot: bool) -> Result:
    """`accept_rejection` against the reference; a request in a thousand may differ at an edge of the CDF."""
    case = make_case(num_rows=num_rows, length=3, vocab_size=vocab_size, one_hot=one_hot, seed=1, device=device)
    got = accept_launch.accept_rejection(**case.arguments(MASK_TOKEN_ID % vocab_size))
    expected = accept_reference.accept_rejection(**case.arguments(MASK_TOKEN_ID % vocab_size))
    differs = (got[0] != expected[0]) | (got[1] != expected[1])
    name = f"rejection {'one-hot' if one_hot else 'sampled'} {num_rows}x{vocab_size}"
    return _result(name, float(differs.double().mean()), 1e-3, True)


def check_rounds(device: str, num_rows: int, width: int) -> Result:
    """`advance_rows` against the reference, bit for bit, state and results."""
    rng = random.Random(width)
    expected_state = make_state(num_rows, width, 3, rng)
    inputs = make_round(num_rows, num_rows, width, rng)
    tables = ("canvas", "is_masked", "progress", "policy_ints", "policy_floats", "stop_ids")
    # Clones: on the CPU, `to` would share what both change.
    moved = {name: getattr(expected_state, name).clone().to(device) for name in tables}
    state = replace(expected_state, **moved)
    rows = [inputs[name] for name in ("slots", "seq_lens", "chosen", "confidence")]
    got = advance_launch.advance_rows(state, *(value.to(device) for value in rows))
    expected = advance_reference.advance_rows(expected_state, *rows)
    pairs = [*zip(got, expected, strict=True)]
    pairs += [(getattr(state, name), getattr(expected_state, name)) for name in tables[:3]]
    is_equal = all(torch.equal(value.cpu(), other) for value, other in pairs)
    return _result(f"rounds {num_rows}x{width}", 0.0, 0.0, is_equal)


def checks(device: str, *, small: bool = False) -> list[tuple[str, Callable[[], Result]]]:
    """Every check by name; `small` ones are for the interpreter."""
    rows, vocab = (2, 300) if small else (64, 131072)
    many = 4 if small else 2000
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    return [
        *((f"greedy-{dtype}", lambda dtype=dtype: check_greedy(device, dtype, rows, vocab)) for dtype in dtypes),
        *(
            (f"draws-{dtype}-{filtered}", lambda d=dtype, f=filtered: check_draws(device, d, rows, vocab, filtered=f))
            for dtype in dtypes
            for filtered in (False, True)
        ),
        ("greedy-odd", lambda: check_greedy(device, torch.bfloat16, 3, 4097)),
        ("random", lambda: check_random_numbers(device)),
        ("unmask-32", lambda: check_unmask(device, many, 32)),
        ("unmask-63", lambda: check_unmask(device, many, 63)),
        ("unmask-rounds-32", lambda: check_rounds(device, many, 32)),
        ("unmask-rounds-63", lambda: check_rounds(device, many, 63)),
        ("prefix-32", lambda: check_prefix(device, many, 32)),
        ("rejection", lambda: check_rejection(device, many, 120, one_hot=False)),
        ("rejection-one-hot", lambda: check_rejection(device, many, 120, one_hot=True)),
    ]


def _result(case: str, error: float, limit: float, is_equal: bool) -> Result:
    note = "" if is_equal else "integers differ"
    return {"case": case, "error": error, "limit": limit, "passed": is_equal and error <= limit, "note": note}
