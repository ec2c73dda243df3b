# On a new machine, `make run` and `make test` set up everything: the virtual environment, the build, the data.
PYTHON ?= python3
ARGS ?=
JOBS ?= 2
KILLS ?= 1000
RAY_TESTS := tests/engine/generation/workers
OUT ?= runs/fashion-mnist-$(shell date +%Y%m%d-%H%M%S)

BIN := .venv/bin
STAMP := .venv/installed
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(shell find kernels/csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help setup run test chaos matrix lint format sanitize assets data

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(STAMP)  ## Install everything into .venv: a few minutes, 8 GB

run: $(STAMP) data  ## Run the whole loop into a new folder of runs/; ARGS="--seed 1", OUT=DIR
	$(BIN)/python -m engine.run $(if $(findstring --out,$(ARGS)),,--out $(OUT)) $(ARGS)

test: $(STAMP) data  ## Run the tests; ARGS="tests/kernels -k native", JOBS=2 processes
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations 20 -m "not ray" $(ARGS)
	$(BIN)/python -m pytest -m ray $(or $(ARGS),$(RAY_TESTS))

chaos: $(STAMP)  ## Kill commands and workers KILLS=1000 times; CHAOS_SEED=N repeats a run
	CHAOS_KILLS=$(KILLS) $(BIN)/python -m pytest tests/engine/test_chaos.py tests/engine/generation/workers/test_ways.py $(ARGS)

matrix: $(STAMP)  ## Test every network of the matrix of teachers, and print CPU seconds and peak memory
	@mkdir -p build && rm -f build/matrix.txt
	MATRIX=build/matrix.txt $(BIN)/python -m pytest tests/engine/test_matrix.py $(ARGS); status=$$?; cat build/matrix.txt; exit $$status

lint: $(STAMP)  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sanitize: $(STAMP)  ## Run the C++ under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/cmake -S tests/kernels/sanitize -B build/sanitize
	$(BIN)/cmake --build build/sanitize --parallel
	build/sanitize/sanitize

assets: $(STAMP) data  ## Train the shipped teacher and priors again (hours)
	$(BIN)/python -m engine.pretrain $(ARGS)

data: $(STAMP)  ## Fetch Fashion-MNIST; continue without it if it is not available
	$(BIN)/python -m engine.datasets.fetch --optional

$(STAMP): $(BUILD_INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "make: $(PYTHON) is missing or older than 3.11; choose another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot create a virtual environment (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || \
		{ echo "make: the headers of $(PYTHON) are missing (Debian: apt-get install python3-dev)" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		{ echo "make: no C++ compiler (Debian: apt-get install g++)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@
