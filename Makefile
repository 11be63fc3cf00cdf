# Everything starts here. Every target sets up .venv first, when it is missing or stale; `make help` lists them.
#
#   PYTHON           interpreter for the set-up (3.11 or newer); default: the first that works
#   DEVICE           auto (default), cpu or cuda
#   TORCH_INDEX_URL  package index with CPU builds of torch, where pip's own configuration has none
#   ARGS             more arguments for the command behind the target

SHELL := /bin/bash
.DEFAULT_GOAL := help
export DEVICE TORCH_INDEX_URL

VENV := .venv
BIN := $(VENV)/bin
# Some shims of a version manager exist and do not run, and some Pythons come without venv: try each.
CAN_SET_UP := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c '$(CAN_SET_UP)' 2>/dev/null && echo $$p && break; done)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

.PHONY: need-python
need-python:
	@test -n "$(PYTHON)" || { \
	echo "error: no Python 3.11+ with venv and pip found" >&2; echo >&2; \
	echo "hint: install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1; }

.PHONY: setup
setup: need-python ## set up .venv for serving
	@$(PYTHON) deploy/setup/venv.py

.PHONY: setup-dev
setup-dev: need-python ## set up .venv with the test and lint tools too
	@$(PYTHON) deploy/setup/venv.py --dev

.PHONY: serve
serve: setup ## serve the bundled checkpoint on 127.0.0.1:30000
	@exec $(BIN)/dlm-sglang serve $(ARGS)

# Two processes, each with a half of the end-to-end tests first, then with whole files of the others
# (tests/conftest.py).
TEST_BESIDE := -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: test
test: setup-dev ## run every test that this machine can run, or those that ARGS names
	$(BIN)/python -m pytest $(or $(ARGS),$(TEST_BESIDE))

.PHONY: test-gpu
test-gpu: setup-dev ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

.PHONY: check
check: setup-dev ## formatting, lint, types, secrets, and known vulnerabilities of the pins
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory secrets audit

# Guesses by entropy and by the word "key" are left out: nearly all that they find is none.
.PHONY: secrets
secrets: setup-dev ## look for keys and passwords in the files of the repository
	@$(BIN)/detect-secrets-hook --disable-plugin KeywordDetector --disable-plugin HexHighEntropyString \
	--disable-plugin Base64HighEntropyString $$(git ls-files) && echo "secrets: none found"

.PHONY: audit
audit: setup-dev ## look the pins up in the list of known vulnerabilities; skipped where there is no network
	@$(BIN)/python deploy/setup/audit.py

.PHONY: soak
soak: setup ## 30 minutes of mixed modes with aborts: memory, leaks, errors, unchanged answers
	@exec $(BIN)/python -m dlm_sglang.measure.soak $(ARGS)

.PHONY: bench
bench: setup ## measure the modes against plain SGLang
	@exec $(BIN)/dlm-sglang bench $(ARGS)

.PHONY: bench-auto
bench-auto: setup ## measure auto against fixed block lengths at 1 to 64 requests (about 10 minutes)
	@exec $(BIN)/python -m dlm_sglang.measure.auto_bench --out docs/results/auto-cpu.jsonl $(ARGS)

.PHONY: bench-options
bench-options: setup ## measure what grammars, logprobs and penalties cost in each mode (about 3 minutes)
	@exec $(BIN)/python -m dlm_sglang.measure.options --out docs/results/options-cpu.json $(ARGS)

.PHONY: simulate-auto
simulate-auto: setup ## auto against fixed block lengths on a simulated H200, no GPU needed
	@exec $(BIN)/python -m dlm_sglang.measure.auto_simulation --out docs/results/auto-h200-simulated.json $(ARGS)

.PHONY: bench-engine
bench-engine: setup ## measure where a decode round's time goes
	@exec $(BIN)/python -m dlm_sglang.measure.engine $(ARGS)

.PHONY: bench-kernels
bench-kernels: setup-dev ## check and time the kernels on a GPU
	@exec $(BIN)/python kernels/benchmarks/run_gpu.py $(ARGS)

.PHONY: compile-kernels
compile-kernels: setup-dev ## compile every kernel variant for sm_90, no GPU needed, and record what each needs
	@exec $(BIN)/python kernels/benchmarks/compile_variants.py $(ARGS)

.PHONY: bench-frontend
bench-frontend: setup ## measure what our HTTP layer adds to a request
	@exec $(BIN)/dlm-sglang bench --frontend --out docs/results/frontend-cpu.json $(ARGS)

.PHONY: fuzz
fuzz: setup-dev ## send 10000 requests made from the OpenAPI schema; nothing may break
	DLM_FUZZ_CASES=10000 DLM_FUZZ_SECONDS=7200 $(BIN)/python -m pytest -s tests/e2e/test_fuzz.py $(ARGS)

.PHONY: json-schemas
json-schemas: setup ## send 2000 requests under JSON schemas; every answer must follow its schema
	@exec $(BIN)/python -m dlm_sglang.measure.json_schemas $(ARGS)

.PHONY: eval
eval: setup ## score the bundled checkpoint on held-out prompts
	@exec $(BIN)/python -m dlm_sglang.bundled.evaluate $(ARGS)

.PHONY: plan
plan: setup ## what fits on a GPU and how fast it can be: ARGS="--model nld-8b --gpu h100"
	@exec $(BIN)/dlm-sglang plan $(ARGS)

.PHONY: configs
configs: setup ## write configs/ anew, as `plan` suggests
	$(BIN)/python -m dlm_sglang.measure.plan.shipped

.PHONY: docs-plots
docs-plots: setup ## measure and draw the plots and tables of docs/ (about 10 minutes on 2 quiet cores)
	$(BIN)/python -m dlm_sglang.measure.docs_plots $(ARGS)

.PHONY: train
train: setup ## train the bundled checkpoint again (at most 2 hours on 2 cores)
	@exec $(BIN)/python -m dlm_sglang.bundled.train $(ARGS)

.PHONY: clean
clean: ## remove .venv and what tools left behind
	rm -rf $(VENV) $(VENV).lock build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dlm_sglang kernels tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +
