"""The choice of a token from one row of logits: argmax or a seeded sample, and its confidence."""

from dlm_kernels.ops.sample_token.reference import confidence_of, greedy_token, sample_token, uniform_from_seed

__all__ = ["confidence_of", "greedy_token", "sample_token", "uniform_from_seed"]
