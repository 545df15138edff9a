# make run     train on the built-in sounds and compare with and without the generator
# make test    the tests          make lint    style and types
# make test-deployment   the tests on several processes, with kills: minutes
# make test-long   more kills and malformed replies than there is time for at every change
# make docs    the documentation, in site/
# make bench   the figures in docs/benchmarks.md
PYTHON ?= python3
BIN := .venv/bin
# Flower would otherwise install the project's dependencies anew, in an environment of its own, for every run.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: run install test test-deployment test-long docs lint bench clean

run: install
	$(BIN)/fed-a2v compare --with FedAvg,prototypes,pooled

install: .venv/installed

# torch first and alone, so that nothing else chooses its build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# Files of tests are dealt to as many processes; torch may not start threads in each that wait for one another's cores.
WORKERS ?= 2
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not deployment and not long" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# SuperLinks and SuperNodes in processes of their own, killed and hung. The tests of one deployment, which often wait for
# Flower, run one after the other; beside them the rest, each by itself.
test-deployment: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "deployment and not long" -n 2 --dist loadgroup

# Twenty kills, ten thousand malformed replies.
test-long: install
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/hostile_replies.py
	$(BIN)/python -m pytest -m long

docs: install
	$(BIN)/mkdocs build --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/esc50.py
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
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/hostile_replies.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/generators.py --standard

clean:
	rm -rf .venv outputs multirun .mypy_cache .ruff_cache .pytest_cache .hypothesis
