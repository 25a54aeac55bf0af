#!/usr/bin/env bash
# Installs what a build of Millrace needs on Debian 12: only what is missing, so that a second run does nothing.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: deploy/install_deps.sh [--tests] [--fuzz] [--list]
  --tests  also what the tests and benchmarks need
  --fuzz   also what the fuzzers need
  --list   print the packages instead of installing them
TEXT
}

packages=(
  g++ cmake ninja-build pkg-config ccache git ca-certificates curl
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libtorch-dev libopenblas0-openmp   # without OpenBLAS LibTorch falls back to reference BLAS, about five times slower
  libabsl-dev prometheus-cpp-dev libcpp-httplib-dev nlohmann-json3-dev libspdlog-dev libcli11-dev libyaml-cpp-dev
  libssl-dev libxxhash-dev zlib1g-dev libpng-dev libjpeg-dev
)
test_packages=(libgtest-dev libgmock-dev libbenchmark-dev librapidcheck-dev python3 python3-yaml python3-venv bubblewrap
               iproute2                   # for networks of several hosts
               libb64-0d                  # of Triton's perf_analyzer
               chromium chromium-driver   # for the page to draw on
               podman runc netavark aardvark-dns iptables catatonit podman-compose)   # for the images
fuzz_packages=(clang libclang-rt-14-dev)

list=0
while [ $# -gt 0 ]; do
  case "$1" in
    --tests) packages+=("${test_packages[@]}") ;;
    --fuzz) packages+=("${fuzz_packages[@]}") ;;
    --list) list=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "install_deps.sh: unknown argument '$1'" >&2; usage >&2; exit 64 ;;
  esac
  shift
done

if [ "$list" = 1 ]; then
  printf '%s\n' "${packages[@]}"
  exit 0
fi

if ! command -v apt-get > /dev/null || ! command -v dpkg-query > /dev/null; then
  echo "install_deps.sh: this is not a Debian system; install by hand: ${packages[*]}" >&2
  exit 78
fi

installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2> /dev/null | sed -n 's/^installed //p' | sort -u)
missing=()
for package in "${packages[@]}"; do
  grep -qxF -- "$package" <<< "$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo > /dev/null; then
    echo "install_deps.sh: not root and no sudo; have these installed: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo "${as_root[@]}")
fi

echo "Installing ${#missing[@]} packages: ${missing[*]}" >&2
# Not every mirror answers at the first try; a half-read package list must not pass for a whole one.
"${as_root[@]}" apt-get -qq -o Acquire::Retries=3 update >&2
"${as_root[@]}" apt-get -qq -y -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 --no-install-recommends install "${missing[@]}" >&2
