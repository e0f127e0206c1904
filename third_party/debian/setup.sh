#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Installs what my_alloc needs on Debian 12, as root or with sudo: Debian
# packages, and the npm packages that third_party/npm/package-lock.json pins.
# Does nothing, quickly, when nothing is missing.
#
#   third_party/debian/setup.sh        for `bazel build`, `test` and `run`
#   third_party/debian/setup.sh --ci   and for .ci/run, and what CONTRIBUTING.md
#                                      names: clang, its tools, valgrind

set -euo pipefail

# Bazel, and what Bazel 7 and later fetch themselves.
debian_packages=(bazel-bootstrap bazel-platforms bazel-rules-java
  bazel-rules-proto bazel-skylib googletest libabsl-dev libbenchmark-dev)

# Compilers; symbols, compression.
packages=(g++ gcc binutils pkg-config libdw-dev zlib1g-dev)
# Programs that tests and the demo run on the allocator.
packages+=(bash gawk git perl python3 redis-tools sqlite3)
# The report's browser test.
packages+=(chromium fonts-dejavu-core)

ci_packages=(clang clang-format-14 clang-tidy-14 libclang-rt-14-dev valgrind)

die() {
  echo "setup.sh: $*" >&2
  exit 1
}

check_system() {
  local id="" version_id="" pretty="an unknown system"
  if [ -r /etc/os-release ]; then
    id=$(. /etc/os-release && echo "${ID:-}")
    version_id=$(. /etc/os-release && echo "${VERSION_ID:-}")
    pretty=$(. /etc/os-release && echo "${PRETTY_NAME:-$ID}")
  fi
  if [ "$id" = debian ] && [ "$version_id" = 12 ]; then
    return
  fi
  cat >&2 <<EOF
setup.sh: this is $pretty; the script installs packages on Debian 12 only.
Elsewhere use Bazel 7 or later (it reads MODULE.bazel and fetches googletest,
Abseil and google benchmark itself), install your system's packages for these
Debian ones:
$(echo "${packages[*]} nodejs npm" | fold -s -w 76 | sed 's/^/  /')
and run \`npm ci\` in third_party/npm.
EOF
  exit 1
}

# Prints those of its arguments that are not installed, one a line.
missing_packages() {
  local installed
  installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "$@" \
    2>/dev/null | sed -n 's/ installed$//p' || true)
  printf '%s\n' "$@" | grep -vxF -e "$installed" || true
}

install_packages() {
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "not root and no sudo; as root run:
  apt-get install --no-install-recommends $*"
    as_root=(sudo)
  fi
  echo "setup.sh: installing $*"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq)
  "${apt[@]}" update </dev/null || die "apt-get update failed"
  "${apt[@]}" install -y --no-install-recommends "$@" </dev/null >/dev/null ||
    die "apt-get could not install: $*"
}

# node_modules carries a copy of the lock file that it was installed from.
install_npm_packages() {
  local stamp=node_modules/.installed-from-lock.json
  cd "$(dirname "$0")/../npm"
  if cmp -s package-lock.json "$stamp"; then
    return
  fi
  echo "setup.sh: installing npm packages"
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null ||
    die "npm ci failed in third_party/npm"
  cp package-lock.json "$stamp"
}

main() {
  case "${1:-}" in
    "") ;;
    --ci) packages+=("${ci_packages[@]}") ;;
    *) die "usage: third_party/debian/setup.sh [--ci]" ;;
  esac
  check_system
  packages+=("${debian_packages[@]}" libpython3.11-testsuite)
  # Any nodejs and npm will do; Debian's npm is some hundred packages.
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    packages+=(nodejs npm)
  fi
  local missing
  mapfile -t missing < <(missing_packages "${packages[@]}")
  if [ "${#missing[@]}" -gt 0 ]; then
    install_packages "${missing[@]}"
  fi
  install_npm_packages
}

main "$@"
