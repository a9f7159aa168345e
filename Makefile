# The two commands of a newcomer are `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check install bench trust clean

demo: $(VENV)/.core
	$(BIN)/etascope demo --out studies/demo

# One process a core, each with the tests of some files.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile

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

# A few hours on two cores, and resumable; afterwards benchmarks/trust/summary.py prints the tables.
trust: $(VENV)/.core .venv-bench-trust/.ready
	.venv-bench-trust/bin/python benchmarks/trust/truth.py
	.venv-bench-trust/bin/python benchmarks/trust/run.py --shard 0/2 & \
	.venv-bench-trust/bin/python benchmarks/trust/run.py --shard 1/2; wait
	.venv-bench-trust/bin/python benchmarks/trust/run.py

.venv-bench-trust/.ready: $(VENV)/.torch pyproject.toml
	$(PYTHON) -m venv .venv-bench-trust
	.venv-bench-trust/$(BENCH_PIP) "$$(grep '^torch==' benchmarks/constraints.txt)"
	.venv-bench-trust/bin/python -m pip install --quiet -e '.[tabular]' -c constraints.txt
	.venv-bench-trust/bin/python -m pip install --quiet \
		"$$(grep '^torch==' constraints.txt)" -r benchmarks/trust/requirements.txt
	.venv-bench-trust/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

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
