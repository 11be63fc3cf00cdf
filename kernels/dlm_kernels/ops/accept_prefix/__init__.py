"""The drafted prefix that the causal distribution confirms, and the bonus token after it."""

from dlm_kernels.ops.accept_prefix.op import accept_prefix, accept_rejection

__all__ = ["accept_prefix", "accept_rejection"]
