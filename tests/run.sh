#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test under ctest.
#
#   tests/run.sh [--preset release|debug|asan|tsan] [--no-install] [ctest arguments ...]
#   tests/run.sh [--preset ...] [--no-install] --only "PROGRAM ..."    builds and runs these test programs, nothing else
#
# Real MNIST is used where MILLRACE_DATA_DIR or ../shared/mnist has it; tests that need it are skipped, loudly, elsewhere.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

preset=release
install=1
only=
while [ $# -gt 0 ]; do
  case $1 in
    --preset) preset=${2:?--preset needs a name}; shift 2 ;;
    --no-install) install=0; shift ;;
    --only) only=${2:?--only needs the names of test programs}; shift 2 ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) break ;;
  esac
done

if [ "$install" = 1 ]; then
  deploy/install_deps.sh --tests
  tests/clients/install.sh
  # Without them only the tests of the chart and of the rules are left out; in CI they fail.
  tests/install_tools.sh > /dev/null || echo "tests: not all tools could be installed" >&2
fi

if [ -z "${MILLRACE_DATA_DIR:-}" ] && [ -d "$root/../shared/mnist" ]; then
  MILLRACE_DATA_DIR=$(cd "$root/../shared/mnist" && pwd)
  export MILLRACE_DATA_DIR
fi
[ -n "${MILLRACE_DATA_DIR:-}" ] || echo "tests: no MNIST (MILLRACE_DATA_DIR is not set): tests on real digits are skipped" >&2

# One thread per process: the tests start many, and OpenMP threads beyond the free cores spin.
export OMP_NUM_THREADS=1
export ASAN_OPTIONS="detect_leaks=1:suppressions=$root/tests/suppressions/asan.txt:${ASAN_OPTIONS:-}"
export LSAN_OPTIONS="suppressions=$root/tests/suppressions/lsan.txt:print_suppressions=0:${LSAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:suppressions=$root/tests/suppressions/ubsan.txt:${UBSAN_OPTIONS:-}"
export TSAN_OPTIONS="suppressions=$root/tests/suppressions/tsan.txt:second_deadlock_stack=1:${TSAN_OPTIONS:-}"

# Objects are the same wherever the checkout lies.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1

# A tree that deploy/run.sh configured has no tests.
cmake --preset "$preset" -DMILLRACE_BUILD_TESTS=ON > /dev/null
if [ -z "$only" ]; then
  cmake --build --preset "$preset" --parallel "$(deploy/parallel_jobs.sh)"
  ctest --preset "$preset" -j "$(nproc)" "$@"
else
  # shellcheck disable=SC2086  # a list of names
  cmake --build --preset "$preset" --parallel "$(deploy/parallel_jobs.sh)" --target $only
  for program in $only; do
    echo "tests: $program ($preset)"
    timeout 600 "build/$preset/tests/$program" --gtest_brief=1
  done
fi
