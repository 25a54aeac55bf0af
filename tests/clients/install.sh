#!/usr/bin/env bash
# Installs the stock clients that tests/integration/stock_clients_test.cc uses into build/clients, unless they are there.
# Without a way to the package index it says so and succeeds: the test is then skipped, as loudly.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

requirements=tests/clients/requirements.txt
cmp -s "$requirements" build/clients/requirements.txt && exit 0

rm -rf build/clients
mkdir -p build
if python3 -m venv build/clients && build/clients/bin/pip install --quiet --disable-pip-version-check -r "$requirements"; then
  cp "$requirements" build/clients/requirements.txt
else
  rm -rf build/clients
  echo "tests: the stock clients ($requirements) cannot be installed: tests with them are skipped" >&2
fi
