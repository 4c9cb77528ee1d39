# The two commands a newcomer needs: `make demo` and `make test`. Both set up all they need and are safe to repeat.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PY := .venv/bin/python
# Where it is set, each of the hundred processes of a test run compiles its imports anew: torch alone takes 7 s.
unexport PYTHONDONTWRITEBYTECODE

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## the Python environment in .venv
	@dev/setup.sh

demo: setup ## a cluster without a GPU, the operator by Helm, six models planned, one answering
	@$(PY) -m dev.demo

demo-down: setup ## take the demo's cluster away
	@$(PY) -m dev.cluster down

test: setup ## everything that CI runs: lint and test-unit, and test-cluster beside them
	@dev/test.sh

lint: setup ## style, types, import contract, generated files
	@$(PY) -m dev.lint

test-unit: setup ## tests that need no cluster
	@$(PY) -m pytest tests/unit -q

test-cluster: setup ## tests on a real API server, scheduler and kubelet; of the faults, one of each kind
	@$(PY) -m dev.at_once -m "not thorough" "tests/cluster/faults" \
		"tests/cluster --ignore=tests/cluster/faults" "tests/node tests/charts"

N ?= 1
SEEDS ?= 3
test-faults: setup ## every fault of docs/faults.md; N=3 rounds, SEEDS=20 of each random case
	@PLIMSOLL_FAULT_SEEDS=$(SEEDS) $(PY) -m dev.at_once --rounds $(N) $(FAULTS)

# Three parts that take about as long as each other, each on clusters of its own.
FAULTS := "tests/cluster/faults/test_kill.py tests/cluster/faults/test_churn.py" \
	"tests/cluster/faults --ignore=tests/cluster/faults/test_kill.py --ignore=tests/cluster/faults/test_churn.py" \
	"tests/cluster/test_leader.py tests/cluster/test_feeds_through_faults.py tests/cluster/lifecycle/test_kill.py \
	tests/cluster/lifecycle/test_rollout_kill.py tests/cluster/lifecycle/test_copies.py \
	tests/cluster/lifecycle/test_rollouts.py"

soak: setup ## ten minutes of churn and faults: the operator's memory stays flat
	@$(PY) -m pytest -q -s tests/cluster/faults/soak.py

bench: setup ## measurements; see docs/benchmarks.md
	@$(PY) -m tests.bench
	@$(PY) -m tests.bench burst

generate: setup ## CRDs and JSON Schemas from their sources
	@$(PY) -m dev.generate

requirements: setup ## pin the dependencies of pyproject.toml anew
	@dev/requirements.sh

.PHONY: help setup demo demo-down test lint test-unit test-cluster test-faults soak bench generate requirements
