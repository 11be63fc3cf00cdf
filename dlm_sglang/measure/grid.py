"""Ways to decode that a sweep goes through: what to send, and how to call it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dlm_sglang.errors import SettingsError
from dlm_sglang.param_table import MODE_ALIASES, GenerationMode

NO_MODE = "none"
NULL = "null"
# Sent as they are: a server of another version may know modes that this package does not.
_SPECULATION, _DIFFUSION = GenerationMode.SELF_SPECULATION.value, GenerationMode.DIFFUSION.value


@dataclass(frozen=True)
class DecodeSetting:
    """One way to decode; None is not sent, so that the server's default applies.

    Attributes:
        mode: `none` sends no field of ours, for other servers.
        confidence_threshold: `null` spreads masks evenly over the steps.
    """

    mode: str
    block_length: int | None = None
    max_denoising_steps: int | None = None
    confidence_threshold: float | str | None = None
    draft_threshold: float | None = None

    def fields(self) -> dict[str, object]:
        """What a request carries."""
        if self.mode == NO_MODE:
            return {}
        sent: dict[str, object] = {"generation_mode": self.mode}
        for name in ("block_length", "max_denoising_steps", "confidence_threshold", "draft_threshold"):
            value = getattr(self, name)
            if value is not None:
                sent[name] = None if value == NULL else value
        return sent

    @property
    def label(self) -> str:
        """Short and unique within a sweep."""
        words = [self.mode]
        if self.block_length is not None:
            words.append(f"block {self.block_length}")
        if self.max_denoising_steps is not None:
            words.append(f"{self.max_denoising_steps} step{'s' if self.max_denoising_steps > 1 else ''}")
        if self.confidence_threshold not in (None, NULL):
            words.append(f"threshold {self.confidence_threshold:g}")
        if self.confidence_threshold == NULL and self.max_denoising_steps is None:
            words.append("no threshold")
        if self.draft_threshold is not None:
            words.append(f"draft {self.draft_threshold:g}")
        return " ".join(words)


def make_grid(
    modes: Sequence[str],
    block_lengths: Sequence[int] = (),
    steps: Sequence[int] = (),
    thresholds: Sequence[str] = (),
    draft_thresholds: Sequence[float] = (),
    *,
    cross: bool = False,
) -> list[DecodeSetting]:
    """The settings of a sweep, in order, without repeats.

    Steps and thresholds are two ways to bound diffusion. Without `cross` each is swept alone: a number of
    steps spreads the masks evenly, a threshold has no step limit. With `cross` they are combined.

    Raises:
        SettingsError: a threshold is not a number or `null`.
    """
    made: list[DecodeSetting] = []
    for mode in (MODE_ALIASES.get(name, name) for name in modes):
        blocks: Sequence[int | None] = block_lengths or [None]
        if mode == _DIFFUSION:
            policies = _policies(steps, [_threshold(text) for text in thresholds], cross)
            made += [
                DecodeSetting(mode, block, num_steps, limit)
                for block in blocks
                for num_steps, limit in policies
                if block is None or num_steps is None or num_steps <= block
            ]
        elif mode == _SPECULATION:
            drafts: Sequence[float | None] = draft_thresholds or [None]
            made += [DecodeSetting(mode, block, draft_threshold=draft) for block in blocks for draft in drafts]
        else:
            made.append(DecodeSetting(str(mode)))
    return list(dict.fromkeys(made))


def _policies(
    steps: Sequence[int], thresholds: Sequence[float | str], cross: bool
) -> list[tuple[int | None, float | str | None]]:
    if cross:
        all_steps: Sequence[int | None] = steps or [None]
        all_limits: Sequence[float | str | None] = thresholds or [None]
        return [(num_steps, limit) for num_steps in all_steps for limit in all_limits]
    alone: Iterable[tuple[int | None, float | str | None]] = [
        *((None, limit) for limit in thresholds),
        *((num_steps, NULL) for num_steps in steps),
    ]
    return list(alone) or [(None, None)]


def _threshold(text: str) -> float | str:
    if text.lower() in (NULL, "none"):
        return NULL
    try:
        return float(text)
    except ValueError:
        raise SettingsError(
            f"a threshold must be a number or null, got {text!r}", code="flag-malformed", hint="e.g. 0.9"
        ) from None
