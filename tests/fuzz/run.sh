#!/usr/bin/env bash
# Runs every fuzzer for some seconds (default 20) on its corpus; new inputs that reach new code stay in build/fuzz/corpus.
#
#   tests/fuzz/run.sh [SECONDS]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
seconds=${1:-20}

deploy/install_deps.sh --fuzz
cmake --preset fuzz > /dev/null
cmake --build --preset fuzz --target fuzzers

passed=0
for fuzzer in build/fuzz/fuzz/*_fuzz; do
  name=$(basename "$fuzzer")
  corpus=build/fuzz/corpus/$name
  seeds=tests/fuzz/corpus/$name
  mkdir -p "$corpus" "$seeds"
  echo "fuzz: $name for $seconds s"
  "$fuzzer" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=10 -print_final_stats=0 -verbosity=0 \
    -artifact_prefix="build/fuzz/$name-" "$corpus" "$seeds" || { echo "fuzz: $name found an input it cannot take" >&2; exit 1; }
  passed=$((passed + 1))
done
echo "fuzz: $passed passed, 0 failed"
