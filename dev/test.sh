#!/usr/bin/env bash
# `make test`: two halves at once, because one computes and the other mostly waits for kubelets and deadlines. The half on
# a cluster is shown while it runs, the other one whole when it ends. Both run to their end, and either one fails the test.
set -euo pipefail
cd "$(dirname "$0")/.."

halves=()
trap 'kill "${halves[@]}" 2>/dev/null; wait; exit 130' INT TERM

told=$(mktemp)
trap 'rm -f "$told"' EXIT
without_cluster() {
  local status=0
  make --no-print-directory --keep-going lint test-unit >"$told" 2>&1 & local running=$!
  trap 'kill $running 2>/dev/null; wait' TERM
  wait $running || status=$?
  printf '\n==> lint and unit tests\n%s\n==> tests on a cluster go on\n' "$(cat "$told")"
  return $status
}

without_cluster & halves+=($!)
make --no-print-directory test-cluster & halves+=($!)

failed=0
wait "${halves[0]}" || failed=1
wait "${halves[1]}" || failed=1
exit $failed
