# Every target works from a clean clone with only Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
FAST := -n 2 --durations=20 -m "not slow and not gpu"
PYTEST := .ci/pytest
.DEFAULT_GOAL := help
# Where it is set, every process compiles torch and transformers anew: seven seconds for each of hundreds in the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup lock format check test coverage chaos test-all test-wheel sbom audit demo sample docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# First the lock, with hashes. Then torch by its range, and the project; the pins hold all else where it is.
# What is imported is compiled then; a tenth of it is.
.venv/.ready: pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about two minutes) ..."
	@$(PIP) install --no-compile --no-deps --require-hashes -r requirements.lock
	@sed -n 's/^\([^ #].*==[^\]*\).*/\1/p' requirements.lock > .venv/pins.txt
	@$(PIP) install --no-compile --no-build-isolation -c .venv/pins.txt -e '.[dev]'
	@touch $@

setup: .venv/.ready  ## create .venv with everything that demo and tests need

lock:  ## write the lock anew from pyproject.toml (UPGRADE=1: newest versions)
	PYTHON=$(PYTHON) .ci/lock $(if $(UPGRADE),--upgrade)

format: setup  ## format and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: setup  ## ruff, mypy strict, pydoclint, import contracts, the lock, migrations, the site builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet worker/engine
	$(BIN)/lint-imports --no-cache
	$(BIN)/python .ci/check_lock.py
	$(BIN)/python -m service.local.check_migrations
	@$(MAKE) --no-print-directory docs

test: check  ## check, then every test but the slow and the GPU ones
	$(PYTEST) $(FAST)

coverage: setup  ## the same tests; which branches they take, and fail under the floor in pyproject.toml
	UNLEARND_COMPUTE_SANDBOX=off $(PYTEST) $(FAST) --cov --cov-report=term --cov-report=xml

chaos: setup  ## every fault at every point of the path, on the real stack: about a quarter of an hour
	$(BIN)/python -m tests.chaos.run $(if $(SEED),--seed $(SEED)) $(if $(S3),--s3)

test-all: check  ## every test, the slow and the GPU ones included
	$(PYTEST)

test-wheel: setup  ## build the wheel, install it from the index into an empty environment, run every command there
	UNLEARND_WHEEL_FROM_INDEX=1 $(BIN)/pytest tests/e2e/test_wheel.py

sbom: setup  ## sbom.cdx.json: what the environment is made of (CycloneDX)
	$(BIN)/python .ci/sbom.py sbom.cdx.json

audit: setup  ## known vulnerabilities of what is in the lock (STRICT=1: fail if they cannot be looked up)
	$(BIN)/python .ci/audit.py requirements.lock $(if $(STRICT),--strict)

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
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .pytest_tmp .coverage* coverage.xml sbom.cdx.json
	rm -rf demo-output sample site docs/reference
