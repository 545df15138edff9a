# make run     train on the built-in sounds and compare with and without the generator
# make test    the tests          make lint    style and types
# make test-deployment   the tests on several processes, with kills: minutes
# make test-long   more kills and malformed replies than there is time for at every change
# make test-python PYTHON=python3.12   the tests with another Python, in an environment of its own
# make coverage   the tests, and which lines of fed_a2v/ they run
# make docs    the documentation, in site/
# make bench   the figures in docs/benchmarks.md
# Each installs what it needs first: make install, what a run needs; make dev, everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For pip, when it installs torch: make run TORCH_OPTIONS="--index-url URL" takes the build that is there.
TORCH_OPTIONS ?=
# Flower would otherwise install the project's dependencies anew, in an environment of its own, for every run.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: run install dev test test-python test-deployment test-long coverage docs lint bench clean

run: install
	$(BIN)/fed-a2v compare --with FedAvg,prototypes,pooled

install: $(VENV)/installed

dev: $(VENV)/dev

define installed
@seconds=$$(($$(date +%s) - $$(cat $(VENV)/started))) size=$$(($$(du -sk $(VENV) | cut -f 1) / 1024)); \
	echo "Installed in $$seconds s, $$size MB in $(VENV)."
@touch $@
endef

# torch first and alone, so that nothing else chooses its build.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fed_a2v needs Python 3.11 or newer: make PYTHON=...")'
	@echo "Installs torch and what a run needs into $(VENV): 2 minutes and 1.7 GB with torch's CPU build."
	@echo "On Linux, pip takes torch's build for GPUs, some 4 GB more, unless told otherwise: see README.md."
	@mkdir -p $(VENV) && date +%s >$(VENV)/started
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_OPTIONS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	$(installed)

# What tests, style, documentation and benchmarks need besides.
$(VENV)/dev: $(VENV)/installed
	@date +%s >$(VENV)/started
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(installed)

WORKERS ?= 2
# Files are dealt to as many processes; torch may not start threads in each that wait for one another's cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SUITE := -m "not deployment and not long" -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: dev
	$(PYTEST) $(SUITE)

test-python:
	version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') && $(MAKE) test VENV=.venv-$$version

# Of what runs in the tests' own processes; what they start in others is not counted.
coverage: dev
	$(PYTEST) $(SUITE) --cov --cov-report=term-missing:skip-covered

# SuperLinks and SuperNodes in processes of their own, killed and hung. Those of one deployment, which often wait for
# Flower, are in one file and run one after the other; beside them the rest.
test-deployment: dev
	$(PYTEST) -m "deployment and not long" -n $(WORKERS) --dist loadfile

# Twenty kills, ten thousand malformed replies, and property tests with thousands of new examples.
test-long: dev
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/hostile_replies.py
	$(PYTEST) -m long
	HYPOTHESIS_PROFILE=long $(PYTEST) -m hypothesis --timeout 3600

docs: dev
	$(BIN)/mkdocs build --strict

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: dev
	$(BIN)/python benchmarks/vae_speed.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/per_class.py
	$(BIN)/python benchmarks/t5_vae.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/flux.py
	$(BIN)/python benchmarks/unseen.py
	$(BIN)/python benchmarks/index.py
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/hostile.py
	$(BIN)/python benchmarks/wrong_configs.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/hostile_replies.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/generators.py --standard

clean:
	rm -rf .venv .venv-* outputs multirun .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
