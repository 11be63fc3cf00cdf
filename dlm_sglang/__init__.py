"""Serve diffusion language models through SGLang: one decode round, three generation modes."""

__version__ = "0.1.0"
