"""Settings of the contract tier: SGLang is imported once, and its own warnings at import are not ours."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.managers import scheduler, tp_worker  # noqa: F401
