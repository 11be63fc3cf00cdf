"""The contact points of `seams/http.py`, as rows; they are in force only in processes that serve HTTP."""

from __future__ import annotations

from dlm_sglang.seams.table import Kind, Seam

HTTP_SERVER = "sglang.srt.entrypoints.http_server"
STOCK_APP = f"{HTTP_SERVER}.app"
_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
GENERATE = f"{_MANAGER}.generate_request"
VALIDATE = f"{_MANAGER}._validate_one_request"
META_INFO = f"{_MANAGER}.update_request_meta_info"
ABORT = f"{_MANAGER}._handle_abort_req"
MODEL_NAME = "sglang.srt.entrypoints.openai.serving_base.OpenAIServingBase._parse_model_parameter"
SIGTERM = "sglang.srt.managers.tokenizer_manager.SignalHandler.sigterm_handler"
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
        f"{STOCK_APP}.exception_handlers",
        (),
        "seams/http.py _invalid_body",
        "errors about a body's shape would hold paths of the server and the prompt, and name no field",
        "SGLang names the field alone",
        Kind.REGISTRY,
    ),
    Seam(
        f"{STOCK_APP}.openapi",
        (),
        "seams/http.py install_http",
        "/openapi.json and /docs would not tell of our fields",
        "with the row above",
        Kind.REGISTRY,
    ),
    Seam(
        GENERATE,
        ("self", "obj", "request"),
        "seams/http_requests.py generate_request",
        "requests by other routes would be decoded unchecked, and responses could not say what ran",
        "with the row above",
        Kind.HOOK,
    ),
    Seam(
        META_INFO,
        ("self", "meta_info", "state", "customized_info", "index", "finish_reason"),
        "seams/http_requests.py update_request_meta_info",
        "meta_info would hold the statistics as a list, and lose them with incremental streaming",
        "SGLang keeps per-request output apart from per-token output",
        Kind.HOOK,
    ),
    Seam(
        VALIDATE,
        ("self", "obj", "input_ids"),
        "seams/http_requests.py validate_one_request",
        "max_prompt_tokens would not be enforced",
        "SGLang has a limit on prompts below the context length",
        Kind.HOOK,
    ),
    Seam(
        ABORT,
        ("self", "recv_obj"),
        "seams/http_requests.py handle_abort",
        "metrics would miss requests that ended in the queue",
        "SGLang reports them like other ends",
        Kind.HOOK,
    ),
    Seam(
        MODEL_NAME,
        ("self", "model"),
        "seams/http_requests.py whole_model_name",
        "a model name with a colon would be taken for a request of an adapter",
        "SGLang looks for adapters only where it serves some",
        Kind.HOOK,
    ),
    Seam(
        SIGTERM,
        ("self", "signum", "frame"),
        "seams/drain.py on_sigterm",
        "a server that is told to end would wait for its last request, however long it takes",
        "SGLang has a limit on how long it drains",
        Kind.HOOK,
    ),
    Seam(
        f"{_MANAGER}.gracefully_exit",
        (),
        "seams/drain.py refuse_while_draining",
        "a server that is told to end would go on taking requests",
        "with the row above",
    ),
    Seam(
        f"{_MANAGER}.abort_request",
        ("self", "rid", "abort_all"),
        "seams/drain.py on_sigterm",
        "with the row above",
        "with the row above",
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
        "seams/http_requests.py front",
        "the default block length would not be the checkpoint's",
        "never",
    ),
    Seam(
        "sglang.srt.runtime_context.get_spec",
        (),
        "seams/http_requests.py front",
        "requests could ask for longer blocks than the server reserved",
        "never",
    ),
    Seam(
        "sglang.srt.runtime_context.get_observability",
        (),
        "seams/http_requests.py start_metrics",
        "metrics would be made where nobody asked for them",
        "never",
    ),
)
