# Two commands matter: `make demo` and `make test`. Each makes the environment in .venv by itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LEROBOT := .venv-lerobot
PYTHON312 ?= $(shell for p in python3.12 $(HOME)/.pyenv/versions/3.12*/bin/python3.12; do \
	"$$p" -c "" 2>/dev/null && echo "$$p" && break; done)

.DEFAULT_GOAL := help
.PHONY: help demo ui screenshots test test-server test-slow test-lerobot test-topology test-browser lint format clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP) ## ingest, train, finetune, evaluate the example data; writes runs/demo/report.html
	$(BIN)/uwm demo

ui: $(STAMP) ## serve the Prefect UI with the demo's flow runs and lineage
	$(BIN)/uwm ui

screenshots: $(STAMP) ## take the pictures in docs/images; FOLDER=/srv/uwm: where the demo for them runs (needs chromium)
	@test -x /usr/bin/chromium || { echo "no chromium: apt-get install chromium"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	PYTHONPATH=tests/support $(BIN)/python docs/screenshots.py $(FOLDER)

test: $(STAMP) ## the whole fast suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "not slow and not gpu and not network"

test-server: $(STAMP) ## schedules, triggers, queues and crashes on a real Prefect server and worker (8 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "server and not browser and not topology"

test-slow: $(STAMP) ## what the fast suite leaves out, but for topology and browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and not topology and not browser and not gpu and not network"

$(LEROBOT)/.installed:
	@test -n "$(PYTHON312)" || { echo "lerobot 0.6 needs Python 3.12: name it with PYTHON312=/path/to/python3.12"; exit 2; }
	$(PYTHON312) -m venv $(LEROBOT)
	$(LEROBOT)/bin/python -m pip install --quiet --disable-pip-version-check 'lerobot[dataset]==0.6.1' \
		torch==2.9.1 torchvision==0.24.1 'torchcodec==0.9.*'
	touch $@

test-lerobot: $(STAMP) $(LEROBOT)/.installed ## exports read by the genuine lerobot 0.6, in Python 3.12 (installs 7.5 GB)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m lerobot

test-topology: $(STAMP) ## the services of docker-compose.yml without containers, and kill -9 of each
	@if test -x "$$(command -v redis-server)" && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then :; \
	elif test "$$(id -u)" = 0; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql redis-server; \
	else echo "install them first: sudo apt-get install postgresql redis-server" >&2; exit 1; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,server]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m topology

test-browser: $(STAMP) ## the tests that drive a browser (needs Debian's chromium)
	@test -x /usr/bin/chromium || { echo "no chromium: apt-get install chromium"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser

lint: $(STAMP) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the demo made
	rm -rf runs/demo
