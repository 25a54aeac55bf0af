#!/usr/bin/env bash
# deploy/fetch_data.sh against stand-ins for the network, for apt-get and for sha256sum: which directory it prints, what
# it keeps and what it refuses.
set -uo pipefail

script=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../deploy" && pwd)/fetch_data.sh
fashion_dir=/usr/share/datasets/fashion-mnist
files=(train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/bin"
export FETCHED=$scratch/fetched INSTALLED=$scratch/installed SCRIPT=$script

# Mirrors are told apart by their host: "good" has the files, "bad" has others, nobody else answers. A file holds the
# digest that it is to have.
cat > "$scratch/bin/curl" <<'STUB'
#!/usr/bin/env bash
output= url=${!#}
while [ $# -gt 0 ]; do
  if [ "$1" = --output ]; then output=$2; fi
  shift
done
echo "$url" >> "$FETCHED"
name=$(basename "$url" .gz)
case "$url" in
  http://good/*) sed -n "s/^ *\[$name\]=//p" "$SCRIPT" > "$output" ;;
  http://bad/*) echo 0000 > "$output" ;;
  *) echo "curl: (6) Could not resolve host" >&2; exit 6 ;;
esac
STUB
cat > "$scratch/bin/sha256sum" <<'STUB'
#!/usr/bin/env bash
read -r digest
echo "$digest  -"
STUB
cat > "$scratch/bin/apt-get" <<'STUB'
#!/usr/bin/env bash
echo "$*" >> "$INSTALLED"
exit "${APT_GET_RESULT:-0}"
STUB
printf '#!/bin/sh\nexec "$@"\n' > "$scratch/bin/sudo"
chmod +x "$scratch/bin"/*

failures=0
check() { # WHAT COMMAND...
  local what=$1
  shift
  if "$@"; then return; fi
  failures=$((failures + 1))
  echo "FAILED: $case_name: $what" >&2
  sed 's/^/  stderr: /' "$scratch/stderr" >&2
}

# Runs the script in a home of its own; sets `out`, `code` and `mnist`, where it should put the files.
fetch() { # CASE ARGUMENT...
  case_name=$1
  shift
  rm -f "$FETCHED" "$INSTALLED"
  mnist=$scratch/$case_name/.cache/millrace/mnist
  code=0
  out=$(env -u MILLRACE_DATA_DIR -u XDG_CACHE_HOME HOME="$scratch/$case_name" PATH="$scratch/bin:$PATH" \
    "$script" "$@" 2> "$scratch/stderr") || code=$?
}
all_there() { for file in "${files[@]}"; do [ -s "$mnist/$file.gz" ] || return 1; done; }
nothing_there() { [ -z "$(ls -A "$mnist" 2> /dev/null)" ]; }
fashion_installed() { [ -s "$fashion_dir/${files[0]}.gz" ] || grep -q dataset-fashion-mnist "$INSTALLED"; }
says() { grep -q "$1" "$scratch/stderr"; }

fetch good-mirror --mirror http://good/mnist
check "exit code is 0" [ "$code" = 0 ]
check "prints the directory alone" [ "$out" = "$mnist" ]
check "has all files" all_there
check "leaves no partial files" [ "$(ls -A "$mnist" | wc -l)" = 4 ]
check "installs nothing" [ ! -e "$INSTALLED" ]

fetch good-mirror --mirror http://nobody/mnist
check "keeps what is there" [ "$out" = "$mnist" ]
check "asks no mirror for it" [ ! -e "$FETCHED" ]

fetch second-mirror --mirror http://bad/mnist --mirror http://good/mnist
check "goes on to the next mirror" [ "$code:$out" = "0:$mnist" ]
check "has all files" all_there
check "says why" says "http://bad/mnist/${files[0]}.gz has the wrong SHA-256"

fetch wrong-digest --mirror http://bad/mnist
check "takes Fashion-MNIST" [ "$code:$out" = "0:$fashion_dir" ]
check "which is installed" fashion_installed
check "keeps no wrong file" nothing_there
check "says so" says "Taking Fashion-MNIST instead"

fetch no-mirror
check "takes Fashion-MNIST" [ "$code:$out" = "0:$fashion_dir" ]
check "tries the public mirrors" grep -q https:// "$FETCHED"

fetch fashion --dataset fashion-mnist
check "takes Fashion-MNIST" [ "$code:$out" = "0:$fashion_dir" ]
check "asks no mirror" [ ! -e "$FETCHED" ]
check "does not apologise" [ ! -s "$scratch/stderr" ]

if ! [ -s "$fashion_dir/${files[0]}.gz" ]; then
  export APT_GET_RESULT=100
  fetch nothing-at-all
  check "fails" [ "$code:$out" = 1: ]
  check "says what to do" says "put the four MNIST .gz files into $mnist"
  check "has fetched the package list" grep -q update "$INSTALLED"
fi

fetch bad-usage --mirrors
check "is a usage error" [ "$code:$out" = 64: ]

if [ "$failures" != 0 ]; then exit 1; fi
echo "fetch_data.sh does what it should"
