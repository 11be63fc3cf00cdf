"""The decoding algorithm: torch only, testable without SGLang."""
