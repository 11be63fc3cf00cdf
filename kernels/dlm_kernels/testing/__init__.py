"""Input builders, oracles and tolerances that tests and benchmarks of the kernels share."""
