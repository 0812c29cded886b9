# Each target does its own set-up, in .venv. `make demo ARGS="--text my_text.txt"` passes options on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := fxoffload passes runtime tests examples benchmarks
ARGS ?=

# Runs a command and shows what it printed only where it fails: pip warns of harmless things.
quietly = $(1) >$(VENV)/setup.log 2>&1 || { cat $(VENV)/setup.log >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs format typing accept bench gpu

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 10

setup: $(READY)  ## local environment with everything that development needs

demo: $(READY)  ## train a GPT without and with fxoffload; table and plot
	$(BIN)/python examples/train_gpt.py $(ARGS)

# A file stays in one process, which traces and compiles only once what its tests share.
test: $(READY)  ## the whole test suite, in up to four processes
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: docs  ## format, lint, types, layering, docs
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layering.py

# A warning, such as a link to what does not exist, is an error.
docs: typing  ## the site of docs/, into build/site
	$(BIN)/zensical build --clean --strict

format: $(READY)  ## rewrite the sources in the one format
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

accept: $(READY)  ## run the tests and take what they print as expected
	EXPECTTEST_ACCEPT=1 $(BIN)/python -m pytest $(ARGS)

bench: $(READY)  ## activation peak and step time of GPT, BERT and T5 (many minutes)
	set -e; for model in gpt bert t5; do \
	  $(BIN)/python -m benchmarks.activation_peak --model $$model $(ARGS); \
	done

gpu: $(READY)  ## every GPU test and measurement, into build/gpu.json (8 minutes, needs CUDA)
	$(BIN)/python -m benchmarks.gpu_suite --output build/gpu.json $(ARGS)

# The type checker does not know package-dir: it sees the package in a tree of links.
typing: $(READY)  ## link tree for the type checker
	rm -rf .typing
	mkdir .typing
	cp -rs "$(CURDIR)/fxoffload" .typing/
	cp -rs "$(CURDIR)/passes" "$(CURDIR)/runtime" .typing/fxoffload/

# Made again when a requirement changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11; name another: make PYTHON=python3.12 ..."; exit 1; }
	@echo "setting up $(VENV): a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(call quietly,$(BIN)/python -m pip install --quiet --upgrade pip)
	@$(call quietly,$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]')
	@touch $@
