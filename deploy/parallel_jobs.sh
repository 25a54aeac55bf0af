#!/usr/bin/env bash
# Prints how many compilers to run at once: one a core, but no more than fit into memory, since a source that includes
# LibTorch takes up to 1.5 GB.
set -euo pipefail
jobs=$(nproc)
memory_jobs=$(awk '/^MemAvailable:/ { print int($2 / 1500000) }' /proc/meminfo)
if [ "$memory_jobs" -lt "$jobs" ]; then jobs=$memory_jobs; fi
if [ "$jobs" -lt 1 ]; then jobs=1; fi
echo "$jobs"
