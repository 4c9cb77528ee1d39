# The two commands a newcomer needs: `make demo` and `make test`. Both set up all they need and are safe to repeat.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PY := .venv/bin/python

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## the Python environment in .venv
	@dev/setup.sh

demo: setup ## a cluster without a GPU, the operator by Helm, six models planned, one answering
	@$(PY) -m dev.demo

demo-down: setup ## take the demo's cluster away
	@$(PY) -m dev.cluster down

test: lint test-unit test-cluster ## everything that CI runs

lint: setup ## style, types, import contract, generated files
	@$(PY) -m dev.lint

test-unit: setup ## tests that need no cluster
	@$(PY) -m pytest tests/unit -q

test-cluster: setup ## tests on a real API server, scheduler and kubelet
	@$(PY) -m pytest tests/cluster tests/node tests/charts -q

bench: setup ## measurements; see docs/benchmarks.md
	@$(PY) -m tests.bench
	@$(PY) -m tests.bench burst

generate: setup ## CRDs and JSON Schemas from their sources
	@$(PY) -m dev.generate

requirements: setup ## pin the dependencies of pyproject.toml anew
	@dev/requirements.sh

.PHONY: help setup demo demo-down test lint test-unit test-cluster bench generate requirements
