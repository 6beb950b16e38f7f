# The few words: run, test, lint, types, fmt, bench.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
# 3.12 and 3.11 first: for them pip brings a redis-server along.
PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
	"$$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

# Tests wait more than they compute: two at a time even on one core, one per core where there are more.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); [ "$$cores" -gt 2 ] && echo "$$cores" || echo 2)

.DEFAULT_GOAL := help
.PHONY: help run test clients lint types fmt bench bench-peers instructions docs reliability clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv was found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time this takes a minute."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(VENV)/.run ## start the gateway on 127.0.0.1:8080, or on GATEWAY_PORT
	@exec $(BIN)/gateway serve

test: clients ## run the whole suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -rs $(ARGS)

clients: $(VENV)/.dev ## install the clients that tests run in environments of their own
	@$(BIN)/python -m tests.clients.python.install $(STRICT)

lint: $(VENV)/.dev ## style, names, import contracts
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports

types: $(VENV)/.dev ## strict type check
	$(BIN)/mypy

fmt: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix --quiet src tests benchmarks
	$(BIN)/ruff format --quiet src tests benchmarks

bench: bench-peers ## cost per request and per chunk, beside a direct call, nginx and other gateways
	$(BIN)/python -m benchmarks $(ARGS)
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.redis_scale
	$(BIN)/python -m benchmarks.routing

bench-peers: $(VENV)/.dev ## install LiteLLM, Portkey and TensorZero, apart from our own packages
	$(BIN)/python -m benchmarks.peers

instructions: $(VENV)/.dev ## instructions per request and per chunk, against the recorded ones (needs valgrind)
	$(BIN)/python -m benchmarks.instructions $(ARGS)

docs: $(VENV)/.run ## write the generated references anew
	$(BIN)/gateway config reference > docs/configuration.md
	$(BIN)/gateway api reference > docs/api.md
	test ! -x $(BIN)/pytest || $(BIN)/python -m tests.conformance.table

reliability: $(VENV)/.dev ## run all fifty faults, the slow ones too, and write docs/reliability.md
	rm -f build/reliability.json
	$(BIN)/python -m pytest -m "slow or not slow" $$($(BIN)/python -m tests.reliability.table tests) tests/reliability $(ARGS); \
	status=$$?; $(BIN)/python -m tests.reliability.table && exit $$status

clean: ## remove what make made
	rm -rf $(VENV) build src/*.egg-info
