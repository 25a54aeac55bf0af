#!/usr/bin/env bash
# What takes too long for every change: the certificate (millrace verify) for many seeds, each another schedule of faults.
# Prints a line a run and exits 1 if any did not end with the same bits; what a failed run left stays, and its place is said.
#
#   tests/nightly.sh [--seeds N] [--first SEED] [--model NAME ...] [flags of millrace verify ...]
#
# By default 20 seeds for the default network and for cnn_deep: 3 epochs, 2 shards, 1 to 4 workers, 12 faults. Takes about
# two minutes a seed on MNIST (MILLRACE_DATA_DIR or ../shared/mnist); with `--data-dir synthetic:train=6000,test=1000`, less.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

seeds=20 first=1 models=()
while [ $# -gt 0 ]; do
  case $1 in
    --seeds) seeds=${2:?--seeds needs a number}; shift 2 ;;
    --first) first=${2:?--first needs a number}; shift 2 ;;
    --model) models+=("${2:?--model needs a name}"); shift 2 ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) break ;;
  esac
done
[ ${#models[@]} -gt 0 ] || models=(cnn cnn_deep)
if [ -z "${MILLRACE_DATA_DIR:-}" ] && [ -d "$root/../shared/mnist" ]; then
  MILLRACE_DATA_DIR=$(cd "$root/../shared/mnist" && pwd)
  export MILLRACE_DATA_DIR
fi

cmake --preset release > /dev/null
cmake --build --preset release --parallel "$(deploy/parallel_jobs.sh)" --target millrace millrace-data millrace-ps \
  millrace-worker > /dev/null

out=$(mktemp -d -t millrace-nightly-XXXXXX)
failed=0
for model in "${models[@]}"; do
  for ((seed = first; seed < first + seeds; ++seed)); do
    run=$out/$model-$seed
    mkdir "$run"
    begin=$SECONDS
    if build/release/bin/millrace verify --model "$model" --epochs 3 --shards 2 --faults 12 --seed "$seed" \
        --out "$run/runs" "$@" > "$run/log" 2>&1; then
      echo "PASS  $model, seed $seed: $(grep -o '[0-9]* of [0-9]* faults happened' "$run/log"), $((SECONDS - begin)) s"
      rm -rf "$run"
    else
      echo "FAIL  $model, seed $seed: $(tail -n 1 "$run/log"); all of it in $run"
      failed=$((failed + 1))
    fi
  done
done
rmdir "$out" 2> /dev/null || true
echo "$((seeds * ${#models[@]} - failed)) passed, $failed failed"
[ "$failed" = 0 ]
