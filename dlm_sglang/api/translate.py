"""Turn what a client sent into what SGLang and the decode worker take.

Our fields leave the body and come back, checked and resolved, as `custom_params["dlm"]`. All else
is passed on as it came.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlm_sglang.api import infill
from dlm_sglang.api.unsupported import Surface, refuse_unsupported
from dlm_sglang.errors import RequestError, shown
from dlm_sglang.param_table import FIELD_BY_NAME, GenerationMode
from dlm_sglang.params import FLAT_KEY, DecodeParams, ServerLimits, closest_field, parse_mode, unknown_field

# What the model's own sampling scripts and other engines call our fields.
FOREIGN_NAMES: Mapping[str, str] = {
    "block_size": "block_length",
    "decoding_mode": "generation_mode",
    "max_steps": "max_denoising_steps",
    "mode": "generation_mode",
    "num_denoising_steps": "max_denoising_steps",
    "steps": "max_denoising_steps",
    "threshold": "confidence_threshold",
}


def translate_openai(body: Mapping[str, object], limits: ServerLimits) -> dict[str, object]:
    """The body of a `/v1/*` request as SGLang takes it.

    Raises:
        RequestError: one of our fields cannot be served, is given twice, or seems misspelt; or a
            field of SGLang's asks for what the worker cannot honour.
    """
    for name in body:
        if name not in FIELD_BY_NAME and (name in FOREIGN_NAMES or closest_field(name)):
            raise _misspelt(name)
    items = infill.infill_of(body)
    ours = {name: value for name, value in body.items() if name in FIELD_BY_NAME}
    rest = {
        name: value
        for name, value in body.items()
        if name not in FIELD_BY_NAME and name not in (infill.INFILL, infill.SUFFIX)
    }
    if items is not None:
        name = infill.SUFFIX if body.get(infill.INFILL) is None else infill.INFILL
        ours = infill.check_mode(ours, limits.default_mode, name)
    custom = _custom_params(body.get("custom_params"), ours, limits)
    if items is not None:
        custom[infill.INFILL_KEY] = items
    refuse_unsupported(body, Surface.OPENAI, {mode_of(custom)}, is_seeded=is_seeded(custom))
    rest["custom_params"] = custom
    return rest


def translate_generate(body: Mapping[str, object], limits: ServerLimits) -> dict[str, object]:
    """The body of a `/generate` request as SGLang takes it; `sampling_params` may be one per prompt.

    Raises:
        RequestError: as in `translate_openai`, or one of our fields stands outside `custom_params`.
    """
    _refuse_misplaced(body, "")
    sampling = translate_sampling(body.get("sampling_params"), limits)
    refuse_unsupported(body, Surface.NATIVE, modes_of(sampling), is_seeded=all_seeded(sampling))
    return {**body, "sampling_params": sampling}


def translate_sampling(sampling: object, limits: ServerLimits, *, resolved: bool = False) -> object:
    """SGLang's sampling parameters with our fields resolved, for one prompt or a list of prompts.

    Args:
        sampling: what stands in `sampling_params`; anything but objects is left for SGLang to refuse.
        limits: the server's limits and defaults.
        resolved: `custom_params["dlm"]` may be there already and is checked again.
    """
    if isinstance(sampling, list):
        return [translate_sampling(one, limits, resolved=resolved) for one in sampling]
    if sampling is None:
        sampling = {}
    if not isinstance(sampling, Mapping):
        return sampling
    _refuse_misplaced(sampling, "sampling_params.")
    custom = _custom_params(sampling.get("custom_params"), {}, limits, resolved=resolved)
    refuse_unsupported(sampling, Surface.SAMPLING, {mode_of(custom)}, "sampling_params.", is_seeded=is_seeded(custom))
    return {**sampling, "custom_params": custom}


def modes_of(sampling: object) -> set[GenerationMode]:
    """The modes of translated sampling parameters, one or a list; all, where nobody can tell."""
    return {mode_of(custom) for custom in _customs(sampling)} or set(GenerationMode)


def mode_of(custom: Mapping[str, object]) -> GenerationMode:
    """The mode in resolved `custom_params`."""
    flat = custom[FLAT_KEY]
    return parse_mode(flat.get("generation_mode") if isinstance(flat, Mapping) else None)


def is_seeded(custom: Mapping[str, object]) -> bool:
    """Whether resolved `custom_params` have seeded blocks."""
    flat = custom[FLAT_KEY]
    return not isinstance(flat, Mapping) or flat.get("seeded_blocks") is not False


def all_seeded(sampling: object) -> bool:
    """Whether translated sampling parameters, one or a list, all have seeded blocks."""
    return all(is_seeded(custom) for custom in _customs(sampling))


def _customs(sampling: object) -> list[Mapping[str, object]]:
    """The `custom_params` of translated sampling parameters, one or a list."""
    ones = sampling if isinstance(sampling, list) else [sampling]
    customs = [one.get("custom_params") for one in ones if isinstance(one, Mapping)]
    return [custom for custom in customs if isinstance(custom, Mapping)]


def _custom_params(
    sent: object, top_level: Mapping[str, object], limits: ServerLimits, *, resolved: bool = False
) -> dict[str, object]:
    if sent is None:
        sent = {}
    if not isinstance(sent, Mapping):
        raise RequestError(
            f"custom_params must be an object, got {shown(sent)}", param="custom_params", code="parameter-type"
        )
    if FLAT_KEY in sent:
        checked = {**sent, FLAT_KEY: _checked_again(sent[FLAT_KEY], limits, resolved=resolved)}
        refuse_unsupported(sent, Surface.CUSTOM, {mode_of(checked)}, "custom_params.")
        return checked
    for key in (infill.INFILL, infill.INFILL_KEY, infill.FIXED_KEY):
        if key in sent and not resolved:
            raise RequestError(
                f"custom_params.{key} is not read, got {shown(sent[key])}",
                param=f"custom_params.{key}",
                code="parameter-misplaced",
                hint="send infill as a field of /v1/completions",
            )
    fields = dict(top_level)
    rest: dict[str, object] = {}
    for name, value in sent.items():
        if name not in FIELD_BY_NAME:
            if closest_field(str(name)):
                raise unknown_field(str(name))
            rest[name] = value
        elif name in fields and (fields[name] != value or type(fields[name]) is not type(value)):
            raise RequestError(
                f"{name} is given twice: {shown(fields[name])} at the top level, {shown(value)} in custom_params",
                param=name,
                code="parameter-conflict",
                hint="give it once",
            )
        else:
            fields[name] = value
    made: dict[str, object] = {**rest, FLAT_KEY: DecodeParams.from_fields(fields, limits).to_flat()}
    refuse_unsupported(sent, Surface.CUSTOM, {mode_of(made)}, "custom_params.")
    return made


def _checked_again(flat: object, limits: ServerLimits, *, resolved: bool) -> dict[str, bool | int | float | str]:
    if not resolved or not isinstance(flat, Mapping):
        raise RequestError(
            f"custom_params.{FLAT_KEY} is reserved for the server, got {shown(flat)}",
            param=f"custom_params.{FLAT_KEY}",
            code="parameter-reserved",
            hint=f"send {', '.join(FIELD_BY_NAME)} instead",
        )
    return DecodeParams.from_flat(flat, limits).to_flat()


def _refuse_misplaced(fields: Mapping[str, object], prefix: str) -> None:
    for name in fields:
        near = name if name in FIELD_BY_NAME else FOREIGN_NAMES.get(str(name)) or closest_field(str(name))
        if near:
            raise RequestError(
                f"{prefix}{name} is not read there on this route",
                param=f"{prefix}{name}",
                code="parameter-misplaced",
                hint=f"put it into sampling_params.custom_params as {near}",
            )


def _misspelt(name: str) -> RequestError:
    if name not in FOREIGN_NAMES:
        return unknown_field(name)
    return RequestError(
        f"unknown parameter {shown(name)}; known are {', '.join(FIELD_BY_NAME)}",
        param=name,
        code="parameter-unknown",
        hint=f"did you mean {FOREIGN_NAMES[name]}?",
    )
