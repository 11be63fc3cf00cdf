"""Tensor operations of diffusion decoding, usable without SGLang."""
