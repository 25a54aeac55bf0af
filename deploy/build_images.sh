#!/usr/bin/env bash
# Builds the images of all programs with Docker (with BuildKit) or Podman, whichever runs here, and prints their sizes.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: deploy/build_images.sh [flags]
  --registry PREFIX         before every name, e.g. registry.example.com/ml; default: none
  --tag TAG                 default: the project's version
  --bin DIR                 take the programs in DIR, built on this machine (Debian 12), instead of compiling them in a container
  --libtorch DIR            compile against the LibTorch unpacked in DIR instead of Debian's
  --base IMAGE              what to compile in; default: debian:12-slim
  --base-from-debootstrap   make that image here with debootstrap, from Debian's mirror: where no registry can be reached
  --sbom DIR                write what each image consists of to DIR/NAME.cdx.json (CycloneDX; needs python3)
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=$(sed -n 's/^project(millrace VERSION \([0-9.]*\).*/\1/p' "$root/CMakeLists.txt")
registry= tag=$version binaries= libtorch= base=debian:12-slim bootstrap=0 sbom=
while [ $# -gt 0 ]; do
  case $1 in
    --registry) registry=${2:?--registry needs a prefix}/; shift ;;
    --tag) tag=${2:?--tag needs a tag}; shift ;;
    --bin) binaries=${2:?--bin needs a directory}; shift ;;
    --libtorch) libtorch=${2:?--libtorch needs a directory}; shift ;;
    --base) base=${2:?--base needs an image}; shift ;;
    --base-from-debootstrap) bootstrap=1 ;;
    --sbom) sbom=${2:?--sbom needs a directory}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "build_images.sh: unknown argument '$1'" >&2; usage >&2; exit 64 ;;
  esac
  shift
done

engine=
for candidate in docker podman; do
  if "$candidate" info > /dev/null 2>&1; then engine=$candidate; break; fi
done
[ -n "$engine" ] || { echo "build_images.sh: neither Docker nor Podman runs here" >&2; exit 78; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
context=$root
flags=()
if [ "$engine" = podman ]; then
  # HEALTHCHECK is Docker's. Isolation by chroot needs nothing of the machine, and runs only what is in this repository.
  flags+=(--format docker --layers --isolation "${BUILDAH_ISOLATION:-chroot}" --ignorefile "$root/deploy/Dockerfile.dockerignore")
fi
if [ -n "$binaries" ]; then
  "$root/deploy/library_closure.sh" "$binaries" "$scratch/roots"
  mkdir "$scratch/nothing"
  context=$scratch/nothing
  flags+=(--build-context "roots=$scratch/roots")
elif [ "$bootstrap" = 1 ]; then
  base=localhost/millrace-debian:12
  if ! "$engine" image inspect "$base" > /dev/null 2>&1; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$scratch/debian" > "$scratch/log" 2>&1 ||
      { tail -n 5 "$scratch/log" >&2; echo "build_images.sh: debootstrap failed" >&2; exit 1; }
    tar -C "$scratch/debian" -c . | "$engine" import - "$base" > /dev/null
    rm -rf "$scratch/debian"
  fi
fi
[ -z "$libtorch" ] || flags+=(--build-context "libtorch=$libtorch")
revision=$(git -C "$root" describe --always --dirty 2> /dev/null || echo unknown)

sizes=()
for target in data ps worker model cli; do
  name=millrace-$target
  [ "$target" != cli ] || name=millrace
  image=$registry$name:$tag
  echo "Building $image ..." >&2
  if ! "$engine" build "${flags[@]}" --file "$root/deploy/Dockerfile" --target "$target" --tag "$image" \
      --build-arg "BASE=$base" --label "org.opencontainers.image.version=$version" \
      --label "org.opencontainers.image.revision=$revision" "$context" > "$scratch/log" 2>&1; then
    tail -n 40 "$scratch/log" >&2
    echo "build_images.sh: $image could not be built" >&2
    exit 1
  fi
  sizes+=("$image $("$engine" image inspect --format '{{.Size}}' "$image")")
  if [ -n "$sbom" ]; then
    mkdir -p "$sbom"
    container=$("$engine" create --no-healthcheck "$image")
    "$engine" export "$container" | "$root/deploy/sbom.py" --name "$name" --version "$version" > "$sbom/$name.cdx.json"
    "$engine" rm "$container" > /dev/null
  fi
done
printf '%s\n' "${sizes[@]}" | awk '{ printf "%-50s %5.0f MB\n", $1, $2 / 1e6 }'
