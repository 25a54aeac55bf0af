#!/usr/bin/env bash
# Lays out the root directories of the images: every program with what it needs to run and nothing else, no shell.
#
#   deploy/library_closure.sh BIN_DIR OUT
#
# OUT/millrace, OUT/millrace-data ... get the program, the shared libraries that the loader finds for it, and for
# scanners and lawyers the entries of their Debian packages (var/lib/dpkg/status.d, as distroless images have them) and
# their copyright files. What millrace-ps, millrace-worker and millrace-model have in common, LibTorch above all, is in
# OUT/torch instead: a layer that registries and nodes keep once. OUT must not be there yet.
set -euo pipefail

plain=(millrace millrace-data)
torch=(millrace-ps millrace-worker millrace-model)

[ $# = 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 64; }
binaries=$1 out=$2
for program in "${plain[@]}" "${torch[@]}"; do
  [ -x "$binaries/$program" ] || { echo "library_closure.sh: no program $binaries/$program" >&2; exit 78; }
done
mkdir "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The paths at which the loader finds what a program needs, below /usr: /lib is a link there.
libraries() { # PROGRAM
  local found
  found=$(ldd "$1")
  if grep -F 'not found' <<< "$found" >&2; then
    echo "library_closure.sh: $1 lacks libraries" >&2
    exit 1
  fi
  sed -n 's/^.*\s\(\/\S*\) (0x[0-9a-f]*)$/\1/p' <<< "$found" | sed 's/^\/lib/\/usr\/lib/' | sort -u
}

# The Debian packages of files, each once; nothing for files of none. dpkg knows some by their path without /usr.
packages_of() { # FILE ...
  { dpkg-query -S "$@" || true; dpkg-query -S "${@#/usr}" || true; } 2> /dev/null |
    sed -n 's/^\([^ ,]*\): .*/\1/p' | sort -u
}

add_packages() { # ROOT PACKAGE ...
  local root=$1 name
  shift
  mkdir -p "$root/var/lib/dpkg/status.d"
  dpkg-query -s "$@" | awk -v folder="$root/var/lib/dpkg/status.d" '/^Package: / { file = folder "/" $2 } { print > file }'
  for name in "${@%%:*}"; do
    [ -f "/usr/share/doc/$name/copyright" ] || continue
    mkdir -p "$root/usr/share/doc/$name"
    cp -L "/usr/share/doc/$name/copyright" "$root/usr/share/doc/$name/"
  done
}

# Libraries at the paths where the loader looks for them: the system's where they are here; others, such as upstream's
# LibTorch, in /usr/lib, and without their symbol tables, which are a quarter of LibTorch.
add_libraries() { # ROOT LIST
  local root=$1 path files=()
  while read -r path; do
    if [[ $path == /usr/* ]]; then
      mkdir -p "$root${path%/*}"
      cp -L "$path" "$root$path"
      files+=("$(readlink -f "$path")")
    else
      install -D --target-directory="$root/usr/lib" "$path"
      strip "$root/usr/lib/${path##*/}"
    fi
  done < "$2"
  # shellcheck disable=SC2046  # a list of names
  [ ${#files[@]} = 0 ] || add_packages "$root" $(packages_of "${files[@]}")
}

# What every image has beside its program: root certificates, a user with a name, a place for temporary files.
add_base() { # ROOT
  local root=$1 name
  mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/tmp"
  chmod 1777 "$root/tmp"
  for name in bin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  printf 'root:x:0:0:root:/:/sbin/nologin\nmillrace:x:65532:65532:millrace:/:/sbin/nologin\n' > "$root/etc/passwd"
  printf 'root:x:0:\nmillrace:x:65532:\n' > "$root/etc/group"
  cp -L /etc/os-release "$root/etc/os-release"
  add_packages "$root" ca-certificates
}

for program in "${plain[@]}" "${torch[@]}"; do
  libraries "$binaries/$program" > "$scratch/$program"
done
comm -12 "$scratch/${torch[0]}" "$scratch/${torch[1]}" | comm -12 - "$scratch/${torch[2]}" > "$scratch/torch"
for program in "${torch[@]}"; do
  comm -23 "$scratch/$program" "$scratch/torch" > "$scratch/own"
  mv "$scratch/own" "$scratch/$program"
done
for root in torch "${plain[@]}"; do
  add_libraries "$out/$root" "$scratch/$root"
  add_base "$out/$root"
done
for program in "${torch[@]}"; do
  add_libraries "$out/$program" "$scratch/$program"
done
for program in "${plain[@]}" "${torch[@]}"; do
  mkdir -p "$out/$program/usr/bin"
  install "$binaries/$program" "$out/$program/usr/bin/"
  strip "$out/$program/usr/bin/$program"
done
mkdir "$out/empty" # for the directories that volumes are mounted over
# The same files make the same layer, whenever it is made.
find "$out" -print0 | xargs -0 touch --no-dereference --date="@${SOURCE_DATE_EPOCH:-0}"
