"""Our part of a scheduler request: its policy and what it has done, attached to SGLang's `Req`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dlm_sglang.decode.auto.row import AutoRow
from dlm_sglang.decode.budget import BudgetRow
from dlm_sglang.decode.controls import Controls, History
from dlm_sglang.decode.policy import DecodePolicy, make_policy
from dlm_sglang.decode.stats import DecodeStats
from dlm_sglang.params import FLAT_KEY, DecodeParams, ServerLimits
from dlm_sglang.seams.controls import controls_of

_GREEDY_TOP_K = 1
_EVERYTHING = 1 << 30
_NUM_SEEDS = 1 << 62

# The name under which SGLang's `Req` puts itself into its own custom parameters.
_ITSELF = "__req__"


@dataclass(slots=True)
class RequestState:
    """Lives and dies with SGLang's `Req`, so nothing of ours outlives a request however it ends.

    Attributes:
        policy: how the request decodes.
        context_length: positions that a sequence may have.
        stats: what was done for it so far, across retractions.
        num_pending_tokens: most tokens that rounds launched and not yet accounted for may emit.
        num_scratch_tokens: tokens emitted in the last round whose KV was never committed.
        controls: what the request asks for beyond sampling, or None.
        history: what its controls remember of its output; made anew by each prefill.
        is_watched: its stream tells of each denoise forward.
        block: what the last round left to tell, on its way to the stream (see `decode/watch.py`).
        auto: the block lengths of a request under `auto`.
        budget: the effort of a request with a latency budget.
        reports: make the parts of its statistics that tell of them, by name.
    """

    policy: DecodePolicy
    context_length: int
    stats: DecodeStats = field(default_factory=DecodeStats)
    num_pending_tokens: int = 0
    num_scratch_tokens: int = 0
    controls: Controls | None = None
    history: History | None = None
    is_watched: bool = False
    block: dict[str, Any] | None = None
    auto: AutoRow | None = None
    budget: BudgetRow | None = None
    reports: dict[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Positions that the request needs in the coming round."""
        return self.policy.block_length if self.auto is None else self.auto.width

    def launch(self) -> int:
        """A round is launched for the request: the positions that it has in it."""
        width = self.policy.block_length if self.auto is None else self.auto.launch()
        self.num_pending_tokens += width
        return width


def forget_itself(original: Callable[..., None], req: Any, *args: Any, **kwargs: Any) -> None:
    """Make a request that no cycle of references keeps once it has ended.

    SGLang lets a request with custom parameters, as ours are, hold itself through them, for logit processors that a
    request brings. Its objects then stay until Python looks through all of its heap, which a scheduler does once in
    thousands of requests.
    """
    original(req, *args, **kwargs)
    custom = req.sampling_params.custom_params
    if req.custom_logit_processor is None and isinstance(custom, dict):
        custom.pop(_ITSELF, None)


def request_state(req: Any, limits: ServerLimits, context_length: int) -> RequestState:
    """The state of `req`, made from its sampling parameters on first sight.

    Raises:
        RequestError: `custom_params["dlm"]` is not what our front end writes.
    """
    state: RequestState | None = getattr(req, "dlm", None)
    if state is None:
        params = _params(req, limits)
        stop_ids = _stop_ids(req)
        controls = controls_of(req, params, stop_ids)
        policy = _policy(req, params, stop_ids, controls)
        state = RequestState(policy, context_length, controls=controls, is_watched=params.stream_denoising)
        req.dlm = state
    return state


def _params(req: Any, limits: ServerLimits) -> DecodeParams:
    custom: Mapping[str, Any] = req.sampling_params.custom_params or {}
    flat = custom.get(FLAT_KEY)
    return DecodeParams.from_fields({}, limits) if flat is None else DecodeParams.from_flat(flat, limits)


def _policy(req: Any, params: DecodeParams, stop_ids: tuple[int, ...], controls: Controls | None) -> DecodePolicy:
    sampling = req.sampling_params
    # SGLang turns temperature 0 into top_k 1 at temperature 1.
    is_greedy = sampling.top_k == _GREEDY_TOP_K or sampling.temperature == 0
    seed = sampling.sampling_seed
    return make_policy(
        params,
        temperature=0.0 if is_greedy else float(sampling.temperature),
        top_k=sampling.top_k if 0 < sampling.top_k < _EVERYTHING else -1,
        top_p=float(sampling.top_p),
        min_p=float(sampling.min_p),
        seed=(_seed_of(req.rid) if seed is None else int(seed)) % _NUM_SEEDS,
        stop_ids=() if sampling.ignore_eos else stop_ids,
        max_new_tokens=int(sampling.max_new_tokens),
        commits_by_prefix=controls is not None and controls.commits_by_prefix,
    )


def _seed_of(request_id: str) -> int:
    """A seed for a request that names none: random as its id is, and the same on every tensor-parallel rank."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest())


def _stop_ids(req: Any) -> tuple[int, ...]:
    """Every token that SGLang's finish check ends the request on, unless it ignores them."""
    sampling = req.sampling_params
    ids: set[int] = set(sampling.stop_token_ids or ()) | set(req.eos_token_ids or ())
    if req.tokenizer is not None:
        if req.tokenizer.eos_token_id is not None:
            ids.add(req.tokenizer.eos_token_id)
        ids |= set(req.tokenizer.additional_stop_token_ids or ())
    return tuple(sorted(ids))
