#!/usr/bin/env bash
# Puts the four MNIST files where Millrace looks for them and prints that directory, the only line on stdout.
# With no way out to a mirror it takes Debian's Fashion-MNIST package instead and says so.
# With --dataset fashion-mnist it takes that package at once.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: deploy/fetch_data.sh [--mirror URL]... [--dataset mnist|fashion-mnist]
  --mirror URL  a directory that holds the four .gz files, tried before the public ones; may be given several times
MNIST's directory is $MILLRACE_DATA_DIR, or ~/.cache/millrace/mnist. Files that are there already are kept.
TEXT
}

mirrors=() dataset=mnist
while [ $# -gt 0 ]; do
  case "$1" in
    --mirror) mirrors+=("${2:?--mirror needs a URL}"); shift ;;
    --mirror=*) mirrors+=("${1#*=}") ;;
    --dataset) dataset=${2:?--dataset needs a name}; shift ;;
    --dataset=*) dataset=${1#*=} ;;
    -h | --help) usage; exit 0 ;;
    *) echo "fetch_data.sh: unknown argument '$1'" >&2; usage >&2; exit 64 ;;
  esac
  shift
done
case "$dataset" in
  mnist | fashion-mnist) ;;
  *) echo "fetch_data.sh: there is no dataset '$dataset' to fetch" >&2; exit 64 ;;
esac
mirrors+=(
  https://storage.googleapis.com/cvdf-datasets/mnist
  https://ossci-datasets.s3.amazonaws.com/mnist
)

# SHA-256 of the files as published; TensorFlow Datasets pins the same digests.
files=(train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte)
declare -A sha256=(
  [train-images-idx3-ubyte]=440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
  [train-labels-idx1-ubyte]=3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
  [t10k-images-idx3-ubyte]=8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
  [t10k-labels-idx1-ubyte]=f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
)

fashion_dir=/usr/share/datasets/fashion-mnist # where Debian's package puts it
take_fashion() {
  if ! [ -s "$fashion_dir/${files[0]}.gz" ]; then
    local as_root=(env DEBIAN_FRONTEND=noninteractive)
    if [ "$(id -u)" != 0 ]; then as_root=(sudo "${as_root[@]}"); fi
    local install=("${as_root[@]}" apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install dataset-fashion-mnist)
    # The first try may fail for want of a package list.
    "${install[@]}" >&2 || { "${as_root[@]}" apt-get -qq update >&2 && "${install[@]}" >&2; } || return 1
  fi
  echo "$fashion_dir"
}
if [ "$dataset" = fashion-mnist ]; then
  take_fashion || { echo "fetch_data.sh: Debian's package dataset-fashion-mnist cannot be installed" >&2; exit 1; }
  exit 0
fi

dir=${MILLRACE_DATA_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME is not set and neither is MILLRACE_DATA_DIR}/.cache}/millrace/mnist}

matches() { # FILE SHA256
  [ -f "$1" ] && [ "$(sha256sum < "$1" | cut -d ' ' -f 1)" = "$2" ]
}

# A directory of the user's own with all four files, of whatever content, is theirs: the data service judges it.
complete=1
for file in "${files[@]}"; do
  [ -s "$dir/$file.gz" ] || [ -s "$dir/$file" ] || [ -s "$dir/${file/-idx/.idx}" ] || complete=0
done
if [ "$complete" = 1 ] && { [ -n "${MILLRACE_DATA_DIR:-}" ] || matches "$dir/${files[0]}.gz" "${sha256[${files[0]}]}"; }; then
  echo "$dir"
  exit 0
fi

partial=
trap '[ -z "$partial" ] || rm -f "$partial"' EXIT

fetch() { # FILE: succeeds when DIR holds exactly the published bytes
  local name=$1.gz url
  if matches "$dir/$name" "${sha256[$1]}"; then return 0; fi
  partial=$(mktemp "$dir/.$name.XXXXXX") || return 1
  for url in "${mirrors[@]}"; do
    echo "Fetching $url/$name" >&2
    if ! curl --fail --silent --show-error --location --connect-timeout 5 --max-time 120 \
        --speed-limit 10000 --speed-time 10 --output "$partial" "$url/$name" >&2; then
      continue
    fi
    if matches "$partial" "${sha256[$1]}"; then
      chmod 644 "$partial"
      mv -f "$partial" "$dir/$name"
      partial=
      return 0
    fi
    echo "fetch_data.sh: $url/$name has the wrong SHA-256 and is thrown away" >&2
  done
  rm -f "$partial"
  partial=
  return 1
}

fetch_all() {
  command -v curl > /dev/null || { echo "fetch_data.sh: curl is not installed" >&2; return 1; }
  mkdir -p "$dir" || return 1
  local file
  for file in "${files[@]}"; do
    fetch "$file" || return 1
  done
}

if fetch_all; then
  echo "$dir"
  exit 0
fi

cat >&2 <<'TEXT'
MNIST cannot be had: no mirror gave the four files. Taking Fashion-MNIST instead (Debian's dataset-fashion-mnist:
same format, ten classes of clothing, not digits). Accuracy will be near 91 %, not 98 %.
TEXT
take_fashion || { echo "fetch_data.sh: no dataset: put the four MNIST .gz files into $dir" >&2; exit 1; }
