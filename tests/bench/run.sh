#!/usr/bin/env bash
# The benchmarks: builds, then measures each figure next to its baseline in the same run.
#
#   tests/bench/run.sh [--json FILE] [--rounds N] [--only NAME ...]
#
# Needs MNIST (MILLRACE_DATA_DIR or ../shared/mnist). The comparison with DistributedDataParallel runs where Debian's
# python3-torch is installed, and says so where it is not.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"

deploy/install_deps.sh --tests
if [ -z "${MILLRACE_DATA_DIR:-}" ] && [ -d "$root/../shared/mnist" ]; then
  MILLRACE_DATA_DIR=$(cd "$root/../shared/mnist" && pwd)
  export MILLRACE_DATA_DIR
fi
cmake --preset release -DMILLRACE_BUILD_BENCHMARKS=ON > /dev/null
cmake --build --preset release --parallel "$(deploy/parallel_jobs.sh)" >&2
exec /usr/bin/python3 tests/bench/run.py --bin build/release "$@"
