# make run     train on the built-in sounds, and compare the default with its baselines on four folds
# make test    the tests          make lint    style and types
# make test-deployment   the tests with SuperLinks and SuperNodes in separate processes, with kills: minutes
# make test-long   twenty kills and ten thousand malformed replies: for a release
# make test-python PYTHON=python3.12   the tests with another Python, in a separate environment
# make coverage   the tests, and the lines of fed_a2v/ that no test runs
# make docs    the documentation, in site/
# make bench   the figures in docs/benchmarks.md and docs/engineering.md
# Each first installs what it needs. make install installs what a run needs, make dev everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Options of pip for torch: make run TORCH_OPTIONS="--index-url URL" installs the build from that URL.
TORCH_OPTIONS ?=
# Otherwise Flower installs the project's dependencies for every run, in a new environment.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: run install dev test test-python test-deployment test-long coverage docs lint bench clean

run: install
	$(BIN)/fed-a2v compare --folds --with FedAvg,prototypes,pooled
	@echo "Next:    . $(BIN)/activate    then    fed-a2v train --help"
	@echo "Your own recordings, a folder with a subfolder for each class:    fed-a2v train dataset=folder dataset.root=FOLDER"

install: $(VENV)/installed

dev: $(VENV)/dev

define installed
@seconds=$$(($$(date +%s) - $$(cat $(VENV)/started))) size=$$(($$(du -sk $(VENV) | cut -f 1) / 1024)); \
	echo "Installed in $$seconds s, $$size MB in $(VENV)."
@touch $@
endef

# torch is installed first and alone, so that no other package determines its build.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fed_a2v needs Python 3.11 or newer: make PYTHON=...")'
	@echo "Installing torch and the packages of a run into $(VENV): 2 minutes and 1.7 GB with torch's CPU build."
	@echo "On Linux, pip installs torch's build for GPUs by default, about 4 GB more: see README.md for the CPU build."
	@mkdir -p $(VENV) && date +%s >$(VENV)/started
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_OPTIONS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	$(installed)

# Adds what tests, lint, documentation and benchmarks need, and a package of which examples/ only reads the weights.
$(VENV)/dev: $(VENV)/installed
	@date +%s >$(VENV)/started
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps Resemblyzer
	$(installed)

WORKERS ?= 2
# Number of processes; each runs whole test files, with one thread of torch, so that they do not compete for cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SUITE := -m "not deployment and not long" -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: dev
	$(PYTEST) $(SUITE)

test-python:
	version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') && $(MAKE) test VENV=.venv-$$version

# Lines that only run in processes started by the tests are not counted.
coverage: dev
	$(PYTEST) $(SUITE) --cov --cov-report=term-missing:skip-covered

# SuperLinks and SuperNodes in separate processes, some killed or hung. The tests of a deployment, which often wait for
# Flower, are in one file and run one after another; other files run in parallel.
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
	$(BIN)/python benchmarks/mistakes.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/train.py --write
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/demo.py --write
	$(BIN)/python benchmarks/deployment.py --write
	$(BIN)/python benchmarks/hostile_replies.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/generators.py --standard

clean:
	rm -rf .venv .venv-* outputs multirun .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
