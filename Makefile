# The commands of the project; `make help` lists them. A change of pyproject.toml or of the lock sets up again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

.DEFAULT_GOAL := help
.PHONY: help setup train test lint types tests test-slow test-long smoke smoke-mps doctor faults lock figures clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s%s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv and install everything into it (Python 3.11 to 3.13)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 to 3.13; use make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/install.py
	@touch $@

train: setup ## pretrain and tune a small GPT on this Python's own docs (minutes)
	$(BIN)/python scripts/train.py precision=fp16 memory=ckpt

smoke: setup ## do the same in seconds, on synthetic data
	$(BIN)/python scripts/train.py experiment=smoke_pipeline

smoke-mps: setup ## on a Mac, take fifty steps in fp16, which must leave checkpoints
	rm -rf runs/smoke_mps
	$(BIN)/python scripts/train.py experiment=smoke_pretrain name=smoke_mps precision=fp16 train.amp=true \
	  memory=ckpt device=mps train.total_steps=50 train.eval_every=25 train.ckpt_every=25
	grep -q 'amp=on amp_dtype=fp16' runs/smoke_mps/train.log
	test -s runs/smoke_mps/pretrain/latest.pt && test -s runs/smoke_mps/pretrain/best.pt

doctor: setup ## examine this machine: precision, speed, memory (ARGS="model=base train.B=8")
	$(BIN)/niels_gpt doctor $(ARGS)

faults: setup ## run the whole fault harness (half an hour)
	NIELS_FAULTS=whole $(BIN)/pytest -vv -m "" tests/faults

test: lint types tests ## check formatting, lint and types, and run the fast tests; every change must pass

lint: setup ## check formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## check types with mypy, strict
	$(BIN)/mypy

tests: setup ## run the fast tests
	$(BIN)/pytest

test-slow: setup ## run the tests with kills, launchers or many processes
	$(BIN)/pytest -m slow

test-long: setup ## run the tests that need or install other packages; shows which are skipped
	$(BIN)/pytest -m long -rs

lock: setup ## regenerate requirements.lock (newer versions: ARGS=--upgrade or ARGS="--upgrade-package numpy")
	$(BIN)/python -m pip install --quiet 'uv>=0.9'
	$(BIN)/python scripts/lock.py $(ARGS)

figures: setup ## count the lines, files and functions of each room
	$(BIN)/python scripts/count_lines.py

clean: ## remove all runs and caches, but not .venv
	rm -rf runs cache .pytest_cache .mypy_cache .ruff_cache
