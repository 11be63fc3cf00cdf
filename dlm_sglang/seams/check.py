"""Whether every contact point with SGLang is what we were built for and took effect; start fails closed."""

from __future__ import annotations

import inspect
import os
import pkgutil
from typing import Any

from dlm_sglang.errors import SeamError
from dlm_sglang.seams.names import ALGORITHM, ARCHITECTURE, ATTENTION_BACKEND, MODEL_TYPE
from dlm_sglang.seams.table import SEAMS, Kind, Seam

BUILT_FOR = "0.5.21"


def check_shape(seam: Seam) -> str | None:
    """What is wrong with a row's target as it stands in the installed SGLang, or None."""
    try:
        target = pkgutil.resolve_name(seam.target)
    except (ImportError, AttributeError) as error:
        return f"{seam.target}: gone ({error}). Lost: {seam.why}. Fix: {seam.adapter}"
    if not seam.parameters:
        return None
    if not callable(target):
        return f"{seam.target}: no longer callable. Lost: {seam.why}. Fix: {seam.adapter}"
    names = set(inspect.signature(target).parameters)
    missing = [name for name in seam.parameters if name not in names and name != "self"]
    if missing:
        return f"{seam.target}: lacks parameters {', '.join(missing)}. Lost: {seam.why}. Fix: {seam.adapter}"
    return None


def check_effect(seam: Seam) -> str | None:
    """Whether a hook row is in force in this process."""
    if seam.kind is not Kind.HOOK or (seam.cpu_only and not on_cpu_platform()):
        return None
    if getattr(pkgutil.resolve_name(seam.target), "__wrapped__", None) is None:
        return f"{seam.target}: our hook is not in force. Lost: {seam.why}. Fix: {seam.adapter}"
    return None


def check_registrations() -> list[str]:
    """Whether SGLang's registries hold what the plugin put there."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.models.registry import ModelRegistry
    from sglang.srt.speculative.spec_registry import get_spec
    from sglang.srt.utils.hf_transformers.common import _CONFIG_REGISTRY

    wanted: list[tuple[bool, str]] = [
        (get_spec(ALGORITHM) is not None, f"speculative algorithm {ALGORITHM}"),
        (ATTENTION_BACKEND in ATTENTION_BACKENDS, f"attention backend {ATTENTION_BACKEND}"),
        (ARCHITECTURE in ModelRegistry.models, f"model {ARCHITECTURE}"),
        (MODEL_TYPE in _CONFIG_REGISTRY, f"config class {MODEL_TYPE}"),
    ]
    return [f"{name} is not registered. Fix: seams/plugin.py" for there, name in wanted if not there]


def check_seams() -> list[str]:
    """Everything that drifted or did not take effect in this process, one line each."""
    problems = [problem for seam in SEAMS if (problem := check_shape(seam)) is not None]
    if not problems:
        problems = [problem for seam in SEAMS if (problem := check_effect(seam)) is not None]
    return problems + check_registrations()


def require_seams(process: str) -> None:
    """Raise `SeamError` with the whole list unless everything is in force.

    Args:
        process: which process asks, for the message.
    """
    problems = check_seams()
    if problems:
        raise SeamError([f"[{process}, pid {os.getpid()}] {problem}" for problem in problems])


def on_cpu_platform() -> bool:
    """Whether our CPU platform is the one in force."""
    from sglang.srt import platforms

    platform: Any = platforms.current_platform
    return bool(platform.device_name == "dlm_cpu")
