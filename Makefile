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

.PHONY: serve test lint sanitize bench clean setup setup-dev

serve: $(VENV)/.runtime
	@$(BIN)/octavo serve $(if $(MODEL),--model $(MODEL)) --port $(PORT) $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# The C++ kernels' tests with every address and every operation checked (GCC's sanitizers). The checked extension is installed in an
# environment of its own, which finds all other packages in $(VENV). Python itself is not checked: the sanitizers' libraries are loaded
# before it, the C++ one with them, since exceptions go through both; what it still holds at its end is no leak. Reports go past pytest.
SANITIZE  := build/sanitize
SANITIZED  = LD_PRELOAD="$(shell $${CXX:-c++} -print-file-name=libasan.so) $(shell $${CXX:-c++} -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(SANITIZE)/bin/python
SITE      := import sysconfig; print(sysconfig.get_path("purelib"))

sanitize: $(SANITIZE)/.built
	@$(SANITIZED) -c 'import octavo.ops._cpu as kernels; print(kernels.__file__); assert "/$(SANITIZE)/" in kernels.__file__'
	@$(SANITIZED) -m pytest --capture=sys tests/kernels/test_cpu_*.py $(ARGS)

$(SANITIZE)/.built: $(VENV)/.dev $(BUILT)
	@echo "octavo: building the kernels with sanitizers (a few minutes)"
	@$(BIN)/python -m venv --without-pip $(SANITIZE)
	@$(BIN)/python -c '$(SITE)' > "$$($(SANITIZE)/bin/python -c '$(SITE)')/development.pth"
	@$(PIP) --python $(SANITIZE)/bin/python install -q --no-deps -e . -C build-dir=$(SANITIZE)/cmake -C cmake.build-type=RelWithDebInfo \
		-C cmake.define.OCTAVO_SANITIZE=ON
	@touch $@

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
