# Each target makes .venv by itself, with nothing but Python 3.11 or newer and make. `make PYTHON=python3.13 …` chooses.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

.PHONY: demo dev test long check bench fuzz chaos soak day clean
.DEFAULT_GOAL := demo

demo: .venv/ready
	@$(BIN)/aftercall demo

dev: .venv/ready
	@$(BIN)/aftercall dev

test: .venv/ready-sinks
	@$(BIN)/python -m pytest --quiet --numprocesses 3 --dist worksteal -m "not long"

# A short run of the chaos and a small day, each judged, and each judgement shown what it must find.
long: .venv/ready-sinks
	@$(BIN)/python -m pytest --quiet --numprocesses 3 --dist loadfile -m long

check: .venv/ready-sinks
	@$(BIN)/ruff format --check --quiet || { echo "some files are not formatted: run $(BIN)/ruff format"; exit 1; }
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/python -m pip --disable-pip-version-check check
	@$(BIN)/python .ci/audit.py

bench: .venv/ready-bench
	@$(BIN)/python -m benchmarks

fuzz: .venv/ready-fuzz
	@$(BIN)/python -m tests.fuzz

# ARGS="--seed 7 --server valkey": what `python -m tests.chaos --help` lists.
chaos: .venv/ready
	@$(BIN)/python -m tests.chaos $(ARGS)

soak: .venv/ready
	@$(BIN)/python -m tests.chaos soak $(ARGS)

# ARGS="--calls 500 --drop 30 --seed 7"
day: .venv/ready
	@$(BIN)/python -m tests.day $(ARGS)

clean:
	rm -rf .venv .fuzz .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/ready: requirements.txt requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "aftercall needs Python 3.11 or newer: install it, or name it: make PYTHON=… $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv (once) …" >&2
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@$(PIP) install -r requirements-dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/ready-sinks: .venv/ready requirements-sinks.txt
	@$(PIP) install -r requirements-sinks.txt
	@touch $@

.venv/ready-bench: .venv/ready requirements-bench.txt
	@$(PIP) install -r requirements-bench.txt
	@touch $@

.venv/ready-fuzz: .venv/ready requirements-fuzz.txt
	@$(PIP) install -r requirements-fuzz.txt || { echo "atheris could not be installed: it is built for CPython 3.11 to 3.14 on x86-64 Linux; choose one: make PYTHON=python3.13 clean fuzz" >&2; exit 1; }
	@touch $@
