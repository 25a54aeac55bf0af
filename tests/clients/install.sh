#!/usr/bin/env bash
# Installs the stock clients that tests/integration/stock_clients_test.cc uses into build/clients, unless they are there.
# Without a way to the package index it says so and succeeds: the test is then skipped, as loudly.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
clients=build/clients

# Triton's client, in a virtual environment of its own.
triton_client() {
  rm -rf "$clients"
  python3 -m venv "$clients" && "$clients/bin/pip" install --quiet --disable-pip-version-check -r "$1" && return
  rm -rf "$clients"
  return 1
}

# Triton's load generator, out of a wheel that brings it, beside the library that it is linked to.
perf_analyzer() {
  local wheels=$clients/wheels
  rm -rf "$wheels" "$clients/perf_analyzer"
  "$clients/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$wheels" -r "$1" || return
  local wheel
  for wheel in "$wheels"/*.whl; do python3 -m zipfile -e "$wheel" "$wheels" || return; done
  install -D -t "$clients/perf_analyzer" "$wheels"/*.data/data/bin/perf_analyzer \
    "$wheels"/nvidia/cuda_runtime/lib/libcudart.so.12 && rm -r "$wheels"
}

# Runs a function unless it has succeeded with these requirements before.
provide() {
  local requirements=$2 marker
  marker=$clients/$(basename "$requirements")
  cmp -s "$requirements" "$marker" && return
  if "$1" "$requirements"; then
    cp "$requirements" "$marker"
  else
    echo "tests: what $requirements names cannot be installed: tests with it are skipped" >&2
  fi
}

provide triton_client tests/clients/requirements.txt
provide perf_analyzer tests/clients/perf_analyzer.txt
