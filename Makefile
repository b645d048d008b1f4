# Every target works from a clean clone with only Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
.DEFAULT_GOAL := help

.PHONY: help setup lock check test chaos test-all demo clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# First the lock, with hashes. Then torch, by its range, and the project itself; the lock holds all else where it is.
.venv/.ready: pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about two minutes) ..."
	@$(PIP) install --require-hashes --no-deps -r requirements.lock
	@sed -n 's/^\([^ #].*==[^\]*\).*/\1/p' requirements.lock > .venv/pins.txt
	@$(PIP) install --no-build-isolation -c .venv/pins.txt -e '.[dev]'
	@touch $@

setup: .venv/.ready  ## create .venv with everything that demo and tests need

lock:  ## write the lock anew from pyproject.toml (UPGRADE=1: newest versions)
	PYTHON=$(PYTHON) .ci/lock $(if $(UPGRADE),--upgrade)

check: setup  ## ruff, mypy strict, pydoclint, import contracts, migrations match the tables
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet worker/engine
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m service.local.check_migrations

test: check  ## check, then every test but the slow and the GPU ones
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

chaos: setup  ## every fault at every point of the path, on the real stack: about a quarter of an hour
	$(BIN)/python -m tests.chaos.run $(if $(SEED),--seed $(SEED))

test-all: check  ## every test, the slow and the GPU ones included
	$(BIN)/pytest

demo: setup  ## the whole promise, end to end, on this machine
	$(BIN)/unlearnd demo

clean:  ## remove what the targets made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .pytest_tmp demo-output
