"""Measurements against running servers; never imports SGLang."""
