"""Whether answers under a JSON schema follow it: `python -m dlm_sglang.measure.json_schemas`."""
