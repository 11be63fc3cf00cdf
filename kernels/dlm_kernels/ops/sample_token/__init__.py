"""The choice of a token from one row of logits: argmax or a seeded sample, with its confidence."""

from dlm_kernels.ops.sample_token.reference import greedy_token, sample_token, uniform_from_seed

__all__ = ["greedy_token", "sample_token", "uniform_from_seed"]
