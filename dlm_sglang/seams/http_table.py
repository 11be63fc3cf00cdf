"""The contact points of `seams/http.py`, as rows; they are in force only in processes that serve HTTP."""

from __future__ import annotations

from dlm_sglang.seams.table import Kind, Seam

HTTP_SERVER = "sglang.srt.entrypoints.http_server"
STOCK_APP = f"{HTTP_SERVER}.app"
_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
GENERATE = f"{_MANAGER}.generate_request"
META_INFO = f"{_MANAGER}.update_request_meta_info"
UVICORN_RUN = "uvicorn.run"
GRANIAN_RUN = f"{HTTP_SERVER}._run_granian_server"

HTTP_SEAMS: tuple[Seam, ...] = (
    Seam(
        f"{STOCK_APP}.user_middleware",
        (),
        "seams/http.py install_http",
        "generation_mode and its companions would be ignored on /v1/* and /generate",
        "SGLang lets a plugin add fields to its requests and responses",
        Kind.REGISTRY,
    ),
    Seam(
        GENERATE,
        ("self", "obj", "request"),
        "seams/http.py generate_request",
        "requests by other routes would be decoded unchecked, and responses could not say what ran",
        "with the row above",
        Kind.HOOK,
    ),
    Seam(
        META_INFO,
        ("self", "meta_info", "state", "customized_info", "index", "finish_reason"),
        "seams/http.py update_request_meta_info",
        "meta_info would hold the statistics as a list, and lose them with incremental streaming",
        "SGLang keeps per-request output apart from per-token output",
        Kind.HOOK,
    ),
    Seam(
        UVICORN_RUN,
        ("app",),
        "seams/http.py run_uvicorn",
        "HTTP workers of --tokenizer-worker-num above 1 would start without plugins",
        "SGLang loads plugins in its HTTP workers",
        Kind.HOOK,
    ),
    Seam(
        GRANIAN_RUN,
        ("tokenizer_worker_num",),
        "seams/http.py run_granian",
        "HTTP/2 workers would start without plugins",
        "with the row above",
        Kind.HOOK,
    ),
    Seam(
        f"{HTTP_SERVER}.get_global_state",
        (),
        "seams/http.py server_limits",
        "the default block length would not be the checkpoint's",
        "never",
    ),
    Seam(
        "sglang.srt.runtime_context.get_spec",
        (),
        "seams/http.py server_limits",
        "requests could ask for longer blocks than the server reserved",
        "never",
    ),
)
