# The two commands are `make demo` and `make test`; both do all set-up on a fresh Debian.

SHELL := /bin/bash
.DEFAULT_GOAL := test
.DELETE_ON_ERROR:

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
ifeq ($(PYTHON),)
$(error Python 3.11 or newer is needed)
endif

BIN := .venv/bin
VENV := .venv/complete
# Each worker drives a real engine; more than two do not make it faster on two cores.
WORKERS ?= 2

.PHONY: schema demo demo-clean test core bench torture fresh lint types layers shape venv rootfs clean
# Prerequisites run in order: packages first.
.NOTPARALLEL:

demo: needs-demo venv
	@$(BIN)/python -m scripts.demo

demo-clean:
	@$(PYTHON) -m scripts.demo clean

test: needs-test lint types layers core rootfs
	$(BIN)/python -m pytest --ignore=tests/core -n $(WORKERS)

# The pure core, to the last branch.
core: venv
	$(BIN)/python -m pytest tests/core --cov=reconciler.core --cov-branch \
		--cov-report=term-missing:skip-covered --cov-fail-under=100

# The JSON schema of the desired file, for editors, from the models.
schema: venv
	$(BIN)/reconciler schema > config/desired.schema.json

bench: needs-test venv
	$(BIN)/python -m benchmarks

# The long form of the fault tests: ROUNDS of random faults, from seed SEED on. A round of
# test_hostile_world is ten seeds.
ROUNDS ?= 200
SEED ?= 1
torture: needs-test venv
	RECONCILER_TORTURE_ROUNDS=$(ROUNDS) RECONCILER_TORTURE_SEED=$(SEED) $(BIN)/python -m pytest \
		tests/e2e/test_crash_points.py tests/e2e/test_faults.py \
		tests/e2e/test_store_kills.py tests/e2e/test_engine_restarts.py tests/e2e/test_hostile.py \
		tests/simulation/test_hostile_world.py -n $(WORKERS) -rP
	@$(PYTHON) -m scripts.fresh $(SUITES)

# Both commands on a bare root of each Debian; SUITES="trixie sid" tries these alone.
SUITES ?= bookworm trixie sid
fresh:
	@$(PYTHON) -m scripts.fresh $(SUITES)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m scripts.words

types: venv
	$(BIN)/mypy

layers: venv
	$(BIN)/lint-imports

# Files, lines, functions and single-use helpers of each package.
shape:
	@$(PYTHON) -m scripts.shape

venv: $(VENV)

# Created again when the requirements change.
$(VENV): requirements.txt requirements-build.txt requirements-dev.txt
	@$(PYTHON) -m scripts.debian venv
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement requirements-build.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
		--no-build-isolation --use-pep517 --requirement requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# Installs the Debian packages of a command; nothing else installs any.
needs-%:
	@$(PYTHON) -m scripts.debian $*

# The root file system of a Debian with systemd, for the tests; once for each checkout.
rootfs: venv
	@$(BIN)/python -m scripts.rootfs

clean:
	rm -rf .venv build dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
