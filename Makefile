# The two commands of a newcomer are `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check install bench clean

demo: $(VENV)/.core
	$(BIN)/etascope demo --out studies/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.dev

# About half an hour, and best with nothing else running; BENCH="--rounds 2" for less.
bench: $(VENV)/.core .venv-bench-tf/.ready .venv-bench-torch/.ready
	$(BIN)/python benchmarks/bench.py $(BENCH)

# torch goes first, at the pinned version: an open range can pull gigabytes of another build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.core

# The peers have environments of their own, so that their pins never meet the project's.
BENCH_PIP := bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/constraints.txt

.venv-bench-tf/.ready: benchmarks/constraints.txt
	$(PYTHON) -m venv .venv-bench-tf
	.venv-bench-tf/$(BENCH_PIP) tensorflow-cpu jax
	touch $@

.venv-bench-torch/.ready: benchmarks/constraints.txt
	$(PYTHON) -m venv .venv-bench-torch
	.venv-bench-torch/$(BENCH_PIP) "$$(grep '^torch==' benchmarks/constraints.txt)"
	.venv-bench-torch/$(BENCH_PIP) 'ray[tune]'
	touch $@

clean:
	rm -rf $(VENV) .venv-bench-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
