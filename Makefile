# Two commands: `make serve` ends with a model answering on PORT, `make test` passes the tests. Each sets up what it needs first.
#   make serve [PORT=8000] [MODEL=directory|file.gguf|repository] [ARGS="--max-num-seqs 64"]
#   make test  [ARGS="-k sampler"]

# The first Python that runs, is new enough and can make environments.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV   ?= .venv
PORT   ?= 8000
MODEL  ?=
ARGS   ?=

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check
# What the compiled extension and the installed metadata depend on: touching anything else needs no new installation.
BUILT := pyproject.toml CMakeLists.txt $(wildcard csrc/cpu/*)

.PHONY: serve test lint bench clean setup setup-dev

serve: $(VENV)/.runtime
	@$(BIN)/octavo serve $(if $(MODEL),--model $(MODEL)) --port $(PORT) $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.runtime
	@$(BIN)/octavo bench throughput $(if $(MODEL),--model $(MODEL)) $(ARGS)

setup: $(VENV)/.runtime
setup-dev: $(VENV)/.dev

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis src/octavo/ops/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "octavo needs Python 3.11 to 3.13 with the venv module; none was found. Set PYTHON=/path/to/python."; exit 1; }
	@echo "octavo: making a virtual environment in $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python $(BUILT)
	@echo "octavo: installing (a few minutes the first time, torch is the largest part)"
	@$(PIP) install -e .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python $(BUILT)
	@echo "octavo: installing with the tools for tests and lint (a few minutes the first time, torch is the largest part)"
	@$(PIP) install -e ".[dev]"
	@touch $@ $(VENV)/.runtime
