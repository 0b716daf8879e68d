# Each verb but gpu-check does its own set-up. TORCH pins the wheel that pip takes: on a machine
# without a GPU, point pip at a CPU build of it beforehand (PIP_EXTRA_INDEX_URL) to save gigabytes.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
OUT    ?= build
export PYTHONSAFEPATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test check fmt bench gpu-check
.DEFAULT_GOAL := test

.venv/.run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install -q -e ".[test,dev]"
	touch $@

setup: .venv/.dev

demo: .venv/.run
	$(BIN)/python examples/role_play_chat.py --demo

test: .venv/.dev check
	$(BIN)/pytest

check: .venv/.dev
	$(BIN)/ruff format --check ramify tests examples benchmarks scripts
	$(BIN)/ruff check ramify tests examples benchmarks scripts
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/size.py --check

fmt: .venv/.dev
	$(BIN)/ruff format ramify tests examples benchmarks scripts
	$(BIN)/ruff check --fix ramify tests examples benchmarks scripts

bench: .venv/.dev
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/run_all.py

# No set-up here: a machine with a GPU has its own torch. PYTHON=... says whose.
gpu-check: CHECKER = $(if $(findstring command,$(origin PYTHON)),$(PYTHON),$(or $(wildcard $(BIN)/python),$(PYTHON)))
gpu-check:
	PYTHONPATH="$(CURDIR):$(CURDIR)/benchmarks$${PYTHONPATH:+:$$PYTHONPATH}" $(CHECKER) \
	  benchmarks/gpu_check.py --json $(OUT)/gpu_check.json --markdown $(OUT)/gpu_check.md \
	  --log $(OUT)/gpu_check.log $(ARGS)
