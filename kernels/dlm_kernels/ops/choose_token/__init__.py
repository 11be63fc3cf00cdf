"""The token that each logits row proposes and how sure it is: stage 1 of parallel unmasking."""

from dlm_kernels.ops.choose_token.op import choose_token
from dlm_kernels.ops.sample_token.rows import SamplingRows

__all__ = ["SamplingRows", "choose_token"]
