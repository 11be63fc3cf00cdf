"""A long load of mixed modes with aborts, and what must not change under it; `python -m dlm_sglang.measure.soak`."""
