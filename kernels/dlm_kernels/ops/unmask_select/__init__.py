"""Which masked positions of each block a denoising step fills, and what is left to do after it."""

from dlm_kernels.ops.unmask_select.op import unmask_block, unmask_select
from dlm_kernels.ops.unmask_select.reference import UnmaskedBlock

__all__ = ["UnmaskedBlock", "unmask_block", "unmask_select"]
