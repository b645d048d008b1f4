# Every target works from a clean clone with only Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help setup check test chaos test-all demo sample docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about a minute) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: .venv/.ready  ## create .venv with everything that demo and tests need

check: setup  ## ruff, mypy strict, pydoclint, import contracts, migrations match the tables, the site builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet worker/engine
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m service.local.check_migrations
	@$(MAKE) --no-print-directory docs

test: check  ## check, then every test but the slow and the GPU ones
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

chaos: setup  ## every fault at every point of the path, on the real stack: about a quarter of an hour
	$(BIN)/python -m tests.chaos.run $(if $(SEED),--seed $(SEED))

test-all: check  ## every test, the slow and the GPU ones included
	$(BIN)/pytest

demo: setup  ## the whole path on a sample model, on this machine
	$(BIN)/unlearnd demo

sample: setup  ## sample data in ./sample: a small model that has memorised fictional people, and its texts
	$(BIN)/unlearnd sample sample

docs: setup  ## the documentation site in ./site; fails on a broken link or a page without a place
	$(BIN)/mypy docs/generate.py
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@! grep -rl --include='*.html' '```' site || { echo "these pages show a block of code as text"; exit 1; }

clean:  ## remove what the targets made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .pytest_tmp demo-output sample site docs/reference
