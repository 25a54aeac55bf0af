#!/usr/bin/env bash
# From a bare Debian 12 to a trained and served network: installs packages, builds, fetches data, trains with two
# workers while a model service hot-loads what comes out, sends every test image through it and prints the result.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
binaries=(millrace millrace-data millrace-ps millrace-worker millrace-model)

usage() {
  cat <<'TEXT'
usage: deploy/run.sh [flags of 'millrace train']
  --serve         leave the model service up afterwards and print its URL
  --data-dir DIR  train on these IDX files instead of fetching MNIST
  --dataset NAME  mnist (default) and fashion-mnist are fetched, others looked for as 'millrace train' does
  --out DIR       where everything goes; default: a new directory under out/ of the checkout
Other flags go to 'millrace train', for example --epochs 3 --workers 4 --model mlp --json result.json
TEXT
}

data_dir= out= model_name=mnist dataset=mnist
arguments=("$@")
for ((i = 0; i < ${#arguments[@]}; ++i)); do
  case "${arguments[i]}" in
    -h | --help) usage; exit 0 ;;
    --data-dir | --data-dir=*) data_dir=given ;;
    --out | --out=*) out=given ;;
    --dataset=*) dataset=${arguments[i]#*=} ;;
    --dataset) dataset=${arguments[i + 1]:-mnist} ;;
    --model-name=*) model_name=${arguments[i]#*=} ;;
    --model-name) model_name=${arguments[i + 1]:-mnist} ;;
  esac
done

"$root/deploy/install_deps.sh"

build() {
  # A tree that is configured already, perhaps with tests, stays as it is.
  if ! [ -f "$root/build/release/build.ninja" ]; then
    (cd "$root" && cmake --preset release -DMILLRACE_BUILD_TESTS=OFF)
  fi
  cmake --build "$root/build/release" --parallel "$("$root/deploy/parallel_jobs.sh")" --target "${binaries[@]}"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "Building (a few minutes the first time) ..." >&2
if [ -t 2 ]; then
  build
elif ! build > "$log" 2>&1; then
  tail -n 60 "$log" >&2
  echo "run.sh: the build failed" >&2
  exit 1
fi

defaults=()
if [ -z "$data_dir" ] && [[ $dataset = mnist || $dataset = fashion-mnist ]]; then
  data_dir=$("$root/deploy/fetch_data.sh" --dataset "$dataset")
  defaults+=(--data-dir "$data_dir")
fi
if [ -z "$out" ]; then
  defaults+=(--out "$root/out/$model_name-$(date +%Y%m%d-%H%M%S)")
fi
rm -f "$log"
exec "$root/build/release/bin/millrace" train "${defaults[@]}" "$@"
