"""The choice of a token from one row of logits: argmax or a seeded sample, and its confidence."""

from dlm_kernels.ops.sample_token.op import sample_token, uniform_from_seed
from dlm_kernels.ops.sample_token.reference import confidence_of, filtered_probs, greedy_token
from dlm_kernels.ops.sample_token.rows import SamplingRows

__all__ = ["SamplingRows", "confidence_of", "filtered_probs", "greedy_token", "sample_token", "uniform_from_seed"]
