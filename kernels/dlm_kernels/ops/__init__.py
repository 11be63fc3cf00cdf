"""The tensor operations that are special to diffusion language models, one folder each."""
