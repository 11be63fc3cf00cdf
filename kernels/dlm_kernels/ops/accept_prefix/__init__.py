"""The longest drafted prefix that the causal distribution confirms, and the bonus token after it."""

from dlm_kernels.ops.accept_prefix.reference import accept_prefix

__all__ = ["accept_prefix"]
