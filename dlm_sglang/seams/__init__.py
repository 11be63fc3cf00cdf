"""Every contact point with SGLang; the only package that may import it."""
