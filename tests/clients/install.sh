#!/usr/bin/env bash
# Installs the stock clients that tests/integration/stock_clients_test.cc uses into build/clients, unless they are there.
# Without a way to the package index it says so and succeeds: the test is then skipped, as loudly.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

wanted=(tests/clients/requirements.txt tests/clients/perf_analyzer.txt)
cmp -s <(cat "${wanted[@]}") build/clients/installed.txt && exit 0

rm -rf build/clients
mkdir -p build

install_perf_analyzer() {
  local files=build/clients/perf_analyzer
  build/clients/bin/pip download --quiet --disable-pip-version-check --no-deps --dest "$files" -r tests/clients/perf_analyzer.txt \
    && for wheel in "$files"/*.whl; do python3 -m zipfile -e "$wheel" "$files"; done \
    && install -D -t build/clients/bin "$files"/*.data/data/bin/perf_analyzer \
    && install -D -m 644 -t build/clients/lib "$files"/nvidia/cuda_runtime/lib/libcudart.so.12 \
    && rm -r "$files"
}

if python3 -m venv build/clients && build/clients/bin/pip install --quiet --disable-pip-version-check -r "${wanted[0]}" \
    && install_perf_analyzer; then
  cat "${wanted[@]}" > build/clients/installed.txt
else
  rm -rf build/clients
  echo "tests: the stock clients (${wanted[*]}) cannot be installed: tests with them are skipped" >&2
fi
