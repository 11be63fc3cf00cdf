"""Choosing block lengths by load and by what drafts are worth: host arithmetic, no tensors, no SGLang."""
