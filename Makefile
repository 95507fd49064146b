# Two commands matter: `make demo` and `make test`. Each makes the environment in .venv by itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo ui screenshots test test-server test-slow lint format clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP) ## ingest, train, finetune, evaluate the example data; writes runs/demo/report.html
	$(BIN)/uwm demo

ui: $(STAMP) ## serve the Prefect UI with the demo's flow runs and lineage
	$(BIN)/uwm ui

screenshots: $(STAMP) ## photograph the lineage pages of a running `make ui` (needs Debian's chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python docs/screenshots.py

test: $(STAMP) ## the whole fast suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "not slow and not gpu and not network"

test-server: $(STAMP) ## schedules, triggers, queues and crashes on a real Prefect server and worker (8 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m server

test-slow: $(STAMP) ## what the fast suite leaves out and this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and not gpu and not network"

lint: $(STAMP) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the demo made
	rm -rf runs/demo
