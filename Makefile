# Everything a developer types. `make demo` and `make test` need Python 3.11 and nothing else.
#
# PIP_ARGS is passed on to every `pip install`, for another package index, a proxy or a cache:
#     make test PIP_ARGS="..."

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
PYTEST_ARGS ?=
OUT ?= demo
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
# Compiling every module of every package would double the time of an installation; Python does it at first use.
PIP := $(PY) -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt $(PIP_ARGS)
# Stamps: installing is skipped as long as neither file has changed since.
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
BENCH := $(VENV)/.installed-bench
RECORD := build/tests.json
# Tests run in $(JOBS) processes of one thread each; more threads would only get in each other's way.
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS)

.PHONY: help demo test test-all lint docs facts bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(RUN)  ## compare samplers on the digits model and write $(OUT)/report.html
	$(VENV)/bin/scoreline compare digits --samplers heun,ddim,deis,dpm-solver++2m,dpm-solver-v3 --nfe 5,10,20 --out $(OUT)

test: lint  ## lint, all quick tests, and facts.json against the tree
	$(TESTS) -m "not slow" --facts $(RECORD) $(PYTEST_ARGS) tests
	$(PY) tools/facts.py check $(RECORD)

test-all: lint  ## the same with the slow tests
	$(TESTS) --facts $(RECORD) $(PYTEST_ARGS) tests
	$(PY) tools/facts.py check $(RECORD)

lint: $(DEV)  ## style, types, the order of the rooms, docstring examples
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	OMP_NUM_THREADS=1 $(PY) -m pytest src

docs: $(DEV)  ## the documentation, in docs/_build/html; a warning is an error
	$(VENV)/bin/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

facts: $(DEV)  ## gather the state of the 48 systems into src/scoreline/facts.json
	$(TESTS) -m "check or page" --facts $(RECORD) tests || test $$? -eq 1 -o $$? -eq 5
	$(PY) tools/facts.py gather $(RECORD)

bench: $(BENCH)  ## side by side with other libraries, each a ratio measured in turn in one process
	for file in benchmarks/bench_*.py; do echo "== $$file"; $(PY) $$file || exit 1; done

clean:  ## remove what was built and measured; the environment stays
	rm -rf build dist docs/_build docs/systems/index.md docs/claims.md .pytest_cache .mypy_cache .ruff_cache \
	    .import_linter_cache .hypothesis src/*.egg-info
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# setuptools is installed first and by itself, so that the build of scoreline uses the pinned one.
$(PY):
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11, or name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than Python 3.11: name another one with PYTHON=..." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(RUN): pyproject.toml constraints.txt | $(PY)
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(PY)
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e '.[dev,docs]'
	@touch $@ $(RUN)

$(BENCH): $(DEV)
	$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@
