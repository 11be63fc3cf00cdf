"""Training and measuring the checkpoint that ships in `dlm_sglang/assets/bundled`."""
