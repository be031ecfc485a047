# Everything sets itself up: a machine with Python 3.11+ and make needs nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers

.PHONY: help setup demo test test-slow torture check bench bench-data bench-replies bench-dialogues bench-answering bench-gpu bench-peers headers format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED)  ## a virtual environment in .venv with everything in it

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sftmix needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $(INSTALLED)

demo: $(INSTALLED)  ## the whole recipe on an embedded model and data set, about a minute on two cores
	$(BIN)/python train.py

test: $(INSTALLED)  ## the tests, without network, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

torture: $(INSTALLED)  ## kills runs at drawn moments, 20 for each of one process, DDP and FSDP2; the same bits must come out
	PYTHONPATH=tests $(BIN)/python tests/torture.py $(ARGS)

check: $(INSTALLED)  ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)  ## what Mixup costs, tokens per second, the confidence pass, growth, layouts; half an hour on two cores
	$(BIN)/python benchmarks/mixup_cost.py $(ARGS)
	$(BIN)/python benchmarks/throughput.py $(ARGS)
	$(BIN)/python benchmarks/scoring.py $(ARGS)
	$(BIN)/python benchmarks/growth.py $(ARGS)
	$(BIN)/python benchmarks/layouts.py $(ARGS)

bench-data: $(INSTALLED)  ## seconds and memory of preparing a data set of growing size; five minutes
	$(BIN)/python benchmarks/data.py $(ARGS)

bench-replies: $(INSTALLED)  ## whether the time to read replies of servers is linear in their length; seconds
	$(BIN)/python benchmarks/replies.py $(ARGS)

bench-dialogues: $(INSTALLED)  ## turns of a dialogue scored in one forward; needs ARGS="--model FOLDER"
	$(BIN)/python benchmarks/dialogues.py $(ARGS)

bench-answering: $(INSTALLED)  ## answers in batches against one at a time, and what keyed draws cost; a minute
	$(BIN)/python benchmarks/answering.py $(ARGS)

bench-gpu: $(INSTALLED)  ## the first ten minutes on one GPU, in the order of what fails first; writes a record
	PYTHON=$(BIN)/python bash benchmarks/first_gpu.sh

bench-peers: $(PEERS)/.installed  ## tokens per second with TRL beside it, in a separate environment
	$(PEERS)/bin/python benchmarks/throughput.py $(ARGS)

$(PEERS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --editable . "trl==1.16.0"
	@touch $(PEERS)/.installed

headers: $(INSTALLED)  ## write the paper's claims and values into the ablations' files
	PYTHONPATH=src:tests $(BIN)/python tests/ablation_headers.py

format: $(INSTALLED)  ## rewrite the sources in the format of the project
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and the caches; runs/ stays
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
