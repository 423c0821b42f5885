.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON_FILES := platform tests jobs benchmarks
export OAKUM_HOME ?= $(CURDIR)/runs

# Imports of torch and Ray take several times as long without bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test test-all faults lint format types ui lock clean docs

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1:/' \
		| while IFS=: read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

setup: ## Create .venv with everything pinned (PYTHON=/path/to/python chooses the interpreter)
	@.ci/setup

run: setup ## Run the quickstart: train, attack, compare; results land in runs/
	$(BIN)/oakum run jobs/experiments/quickstart.yaml

test: setup ## Run the tests that take less than minutes
	$(BIN)/python -m pytest -q --durations 12 -m "not slow and not gpu"

test-all: setup ## Run every test; those that need a GPU need one
	$(BIN)/python -m pytest -q

faults: setup ## Kill, starve and confuse runs; write the card of what they survived
	$(BIN)/python -m pytest -q -m faults -p tests.fault_card --fault-card benchmarks/results/faults.json

lint: setup ## Check style and format
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)

format: setup ## Mend style and format where a machine can
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)

types: setup ## Check types
	$(BIN)/mypy

ui: setup ## Open the MLflow UI on what runs/ holds
	$(BIN)/oakum ui

lock: setup ## Resolve requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev \
		--no-header --no-annotate pyproject.toml -o requirements.lock --no-emit-index-url

docs: setup ## Write docs/methods.md from the code
	$(BIN)/python -c "from oakum.catalog import methods_page; print(methods_page(), end='')" > docs/methods.md

clean: ## Remove caches and build leftovers; .venv and runs/ stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist platform/*.egg-info
	find platform tests jobs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
