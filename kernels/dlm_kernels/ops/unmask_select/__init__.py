"""Which masked positions of each block a denoising step fills."""

from dlm_kernels.ops.unmask_select.reference import unmask_select

__all__ = ["unmask_select"]
