"""The `dlm-sglang` command: parse, call one function, print."""
