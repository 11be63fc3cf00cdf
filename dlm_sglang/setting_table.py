"""The table of server settings: names, types, ranges, defaults, meanings.

Resolution (`settings.py`), `--help`, the reference page and the YAML schema read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlm_sglang.param_table import MIN_BLOCK_LENGTH

BUNDLED = "bundled"
BUNDLED_PATH = Path(__file__).parent / "assets" / "bundled"
MAX_PORT = 65535
Value = bool | int | float | str | None


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        kind: `string`, `integer`, `number`, `boolean` or `mode`.
        low: smallest value allowed, for numbers.
        high: largest value allowed, for numbers.
        nullable: null is a value: "let SGLang or the checkpoint decide", unless `meaning` says more.
        sglang_flag: the flag of SGLang that carries it (given alone where a boolean is true); empty where only
            the `DLM_*` variable does.
        secret: never printed.
    """

    name: str
    kind: str
    default: Value
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    nullable: bool = False
    sglang_flag: str = ""
    secret: bool = False

    @property
    def flag(self) -> str:
        """The flag of `dlm-sglang serve`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"DLM_{self.name.upper()}"


_DTYPES = ("auto", "float32", "bfloat16", "float16")
_LEVELS = ("debug", "info", "warning", "error")

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "model_path",
        "string",
        BUNDLED,
        "folder or Hugging Face name of the checkpoint; `bundled` is the small one in this package",
        sglang_flag="--model-path",
    ),
    Setting("host", "string", "127.0.0.1", "address to listen on", sglang_flag="--host"),
    Setting("port", "integer", 30000, "port to listen on", low=1, high=MAX_PORT, sglang_flag="--port"),
    Setting(
        "served_model_name",
        "string",
        None,
        "name that clients use; null is the checkpoint's path, `nld-bundled` for the bundled one; "
        "`NAME:diffusion` and the like are served too",
        nullable=True,
        sglang_flag="--served-model-name",
    ),
    Setting(
        "dtype",
        "string",
        "auto",
        "number format of weights and KV; `auto` is the checkpoint's own, float32 for the bundled one on CPU",
        choices=_DTYPES,
        sglang_flag="--dtype",
    ),
    Setting("tp_size", "integer", 1, "GPUs that share the model", low=1, sglang_flag="--tp-size"),
    Setting(
        "mem_fraction_static",
        "number",
        None,
        "share of GPU memory for weights and KV",
        low=0.01,
        high=1,
        nullable=True,
        sglang_flag="--mem-fraction-static",
    ),
    Setting(
        "max_running_requests",
        "integer",
        None,
        "requests decoded at a time",
        low=1,
        nullable=True,
        sglang_flag="--max-running-requests",
    ),
    Setting(
        "context_length",
        "integer",
        None,
        "longest prompt and answer together, in tokens",
        low=1,
        nullable=True,
        sglang_flag="--context-length",
    ),
    Setting("page_size", "integer", None, "tokens per KV page", low=1, nullable=True, sglang_flag="--page-size"),
    Setting(
        "max_block_length",
        "integer",
        32,
        "longest block that a request may ask for; KV slots are reserved for it",
        low=MIN_BLOCK_LENGTH,
        sglang_flag="--speculative-num-draft-tokens",
    ),
    Setting("default_generation_mode", "mode", "self_speculation", "mode of requests that do not name one"),
    Setting(
        "default_block_length",
        "integer",
        None,
        "block length of requests that do not name one; null is the checkpoint's block size, "
        "at most `max_block_length`",
        low=MIN_BLOCK_LENGTH,
        nullable=True,
    ),
    Setting(
        "default_confidence_threshold",
        "number",
        0.9,
        "diffusion: threshold of requests that do not name one; null spreads masks evenly over the steps",
        low=0.0001,
        high=1,
        nullable=True,
    ),
    Setting(
        "default_draft_threshold",
        "number",
        0.0,
        "self-speculation: draft threshold of requests that do not name one",
        low=0,
        high=1,
    ),
    Setting(
        "budget_min_threshold",
        "number",
        0.5,
        "diffusion with `latency_budget_ms`: no confidence threshold is lowered below this",
        low=0.0001,
        high=1,
    ),
    Setting(
        "budget_min_steps",
        "integer",
        2,
        "diffusion with `latency_budget_ms`: no number of denoising steps per block is lowered below this",
        low=1,
    ),
    Setting(
        "overlap_schedule",
        "string",
        "auto",
        "prepare a round while the one before it runs; `auto` does so on a GPU, where the host would else wait",
        choices=("auto", "on", "off"),
    ),
    Setting(
        "pad_rounds",
        "string",
        "auto",
        "pad decode rounds to common shapes, each captured once as a CUDA graph; `auto` does so on a GPU",
        choices=("auto", "on", "off"),
    ),
    Setting(
        "max_padded_tokens",
        "integer",
        1024,
        "query tokens of the largest decode round that is captured; larger ones run without a graph",
        low=1,
    ),
    Setting(
        "prefill_attention",
        "string",
        "auto",
        "what prompts attend through; `auto` is FlashInfer where it is installed, else SGLang's Triton kernels, and "
        "`block`, the kernel of the decode rounds, without a GPU",
        choices=("auto", "block", "flashinfer", "triton"),
    ),
    Setting(
        "round_trace",
        "string",
        None,
        "file that gets one JSON line for every round that the scheduler ran, for measurements",
        nullable=True,
    ),
    Setting(
        "round_trace_reads",
        "string",
        "off",
        "with `round_trace`: count the places where a decode round waits for the device; slows the server down",
        choices=("off", "on"),
    ),
    Setting(
        "api_key", "string", None, "key that clients must send", nullable=True, sglang_flag="--api-key", secret=True
    ),
    Setting(
        "max_queued_requests",
        "integer",
        1024,
        "requests that may wait for a place in the batch; one more is answered 503 with Retry-After",
        low=1,
        nullable=True,
        sglang_flag="--max-queued-requests",
    ),
    Setting(
        "max_concurrent_requests_per_key",
        "integer",
        None,
        "requests that one API key (without keys: one client address) may have open at a time, in each HTTP "
        "process; one more is answered 429 with Retry-After",
        low=1,
        nullable=True,
    ),
    Setting(
        "max_request_bytes",
        "integer",
        16 * 1024 * 1024,
        "largest request body; a larger one is answered 413 and not read",
        low=1024,
        nullable=True,
    ),
    Setting("max_prompt_tokens", "integer", None, "longest prompt that is taken", low=1, nullable=True),
    Setting(
        "max_output_tokens",
        "integer",
        None,
        "largest number of tokens that a request may ask for; also the number for one that does not say",
        low=1,
        nullable=True,
    ),
    Setting(
        "request_timeout_s",
        "number",
        3600.0,
        "seconds from a request's arrival until it is ended, with 504 or an error event",
        low=0.1,
        nullable=True,
    ),
    Setting(
        "drain_timeout_s",
        "number",
        60.0,
        "seconds that requests in progress get to end after SIGTERM, while new ones are answered 503; those left are "
        "aborted then, and the server ends at most about 25 s later",
        low=0,
        nullable=True,
    ),
    Setting(
        "cors_origins",
        "string",
        None,
        "web origins that may call the server from a browser, separated by commas, or `*`; null is none",
        nullable=True,
    ),
    Setting("playground", "boolean", True, "serve the page /playground"),
    Setting("enable_metrics", "boolean", True, "serve Prometheus series on /metrics", sglang_flag="--enable-metrics"),
    Setting("log_level", "string", "info", "least severe message logged", choices=_LEVELS, sglang_flag="--log-level"),
)
SETTING_BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}
