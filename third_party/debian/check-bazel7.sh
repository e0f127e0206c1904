#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Builds and tests the working tree as users of current Bazel do: with
# MODULE.bazel, Bazel 7 and the newest gcc. They come from Debian unstable,
# installed in a folder of its own; this system is not changed.
#
#   third_party/debian/check-bazel7.sh [folder] [bazel test argument...]
#
# The folder (default /var/tmp/my_alloc-unstable, 4 GB) is kept and used again.
# Needs root, the package debootstrap, and setup.sh to have run. The registry
# is not asked: Debian's own googletest, Abseil and google benchmark stand in
# for what MODULE.bazel names, under the same labels.

set -euo pipefail

packages=(bazel-bootstrap g++ gcc binutils pkg-config
  googletest libabsl-dev libbenchmark-dev libdw-dev zlib1g-dev
  bash gawk git perl python3 redis-tools sqlite3 nodejs chromium
  fonts-dejavu-core)

# Modules that Bazel's built-in ones ask for and nothing here uses.
stub_modules=(apple_support buildozer protobuf zlib)

root=${1:-/var/tmp/my_alloc-unstable}
shift || true
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)

die() {
  echo "check-bazel7.sh: $*" >&2
  exit 1
}

in_root() {
  chroot "$root" env -i HOME=/root LANG=C.UTF-8 \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"
}

# Before anything is mounted in the folder: debootstrap makes devices there.
bootstrap_system() {
  if [ -e "$root/etc/my_alloc-bootstrapped" ]; then
    return
  fi
  if [ -e "$root" ] && [ -n "$(ls -A "$root")" ]; then
    die "$root has something else in it, or half a system; remove it"
  fi
  debootstrap --variant=minbase sid "$root" >"$root.log" 2>&1 ||
    die "debootstrap failed, see $root.log; remove $root to try again"
  rm "$root.log"
  touch "$root/etc/my_alloc-bootstrapped"
}

install_system() {
  # A mirror may serve a snapshot whose Release file is past its date.
  local apt=(apt-get -qq -o Acquire::Check-Valid-Until=false)
  local stamp="$root/etc/my_alloc-packages"
  if [ "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]; then
    in_root "${apt[@]}" update
    in_root "${apt[@]}" install -y --no-install-recommends "${packages[@]}" \
      >/dev/null
    echo "${packages[*]}" >"$stamp"
  fi
}

# write_module FOLDER NAME VERSION
write_module() {
  mkdir -p "$1"
  echo "module(name = \"$2\", version = \"$3\")" >"$1/MODULE.bazel"
}

# The registry: an empty module for each stub, at whichever version is asked.
write_registry() {
  local registry="$root/opt/registry" name version
  rm -rf "$registry"
  mkdir -p "$registry/modules"
  echo '{}' >"$registry/bazel_registry.json"
  for name in "${stub_modules[@]}"; do
    write_module "$registry/stub/$name" "$name" 0
    : >"$registry/stub/$name/BUILD.bazel"
    echo "common --override_module=$name=/opt/registry/stub/$name"
  done >>"$root/etc/bazel.bazelrc"
}

write_googletest() {
  local folder="$root/opt/googletest"
  rm -rf "$folder"
  write_module "$folder" googletest 0
  echo 'bazel_dep(name = "rules_cc", version = "0.0.11")' \
    >>"$folder/MODULE.bazel"
  cp -r "$root"/usr/src/googletest/* "$folder/"
  cp "$here/googletest.BUILD" "$folder/BUILD.bazel"
}

# write_library FOLDER: reads "PACKAGE TARGET WORD..." lines; a word that is
# not a link option is a pkg-config module.
write_library() {
  local folder=$1 package target words word options
  while read -r package target words; do
    options=""
    for word in $words; do
      case "$word" in
        -*) options+=" $word" ;;
        *) options+=" $(in_root pkg-config --libs "$word")" ;;
      esac
    done
    mkdir -p "$folder/$package"
    cat >>"$folder/$package/BUILD.bazel" <<EOF
cc_library(
    name = "$target",
    linkopts = "${options# }".split(" "),
    visibility = ["//visibility:public"],
)
EOF
  done
}

write_abseil_and_benchmark() {
  rm -rf "$root/opt/abseil" "$root/opt/benchmark"
  write_module "$root/opt/abseil" abseil-cpp 0
  python3 - "$here/abseil.bzl" <<'EOF' | write_library "$root/opt/abseil"
import sys
table = {}
exec(open(sys.argv[1]).read(), table)
for package, targets in table["ABSEIL"].items():
    for target, module in targets.items():
        print("absl/" + package, target, module)
EOF
  write_module "$root/opt/benchmark" google_benchmark 0
  write_library "$root/opt/benchmark" <<'EOF'
. benchmark benchmark -pthread
. benchmark_main -lbenchmark_main benchmark -pthread
EOF
}

write_rules_shell() {
  rm -rf "$root/opt/rules_shell"
  cp -r "$here/overlay/rules_shell" "$root/opt/rules_shell"
  write_module "$root/opt/rules_shell" rules_shell 0
}

configure_bazel() {
  mkdir -p "$root/opt"
  cat >"$root/etc/bazel.bazelrc" <<'EOF'
common --registry=file:///opt/registry
common --lockfile_mode=off
common --override_module=abseil-cpp=/opt/abseil
common --override_module=google_benchmark=/opt/benchmark
common --override_module=googletest=/opt/googletest
common --override_module=rules_shell=/opt/rules_shell
build --disk_cache=/root/.cache/bazel-disk
EOF
  write_registry
  write_googletest
  write_abseil_and_benchmark
  write_rules_shell
}

copy_sources() {
  rm -rf "$root/src/my_alloc"
  mkdir -p "$root/src/my_alloc"
  (cd "$repo" && {
    git ls-files --cached --others --exclude-standard -z
    find third_party/npm/node_modules -type f -print0
  } | tar --null --files-from=- --ignore-failed-read -cf -) |
    tar -C "$root/src/my_alloc" -xf -
}

main() {
  [ "$(id -u)" -eq 0 ] || die "needs root"
  command -v debootstrap >/dev/null || die "needs the package debootstrap"
  [ -d "$repo/third_party/npm/node_modules" ] ||
    die "run third_party/debian/setup.sh first"
  if [ -z "${MY_ALLOC_OWN_MOUNTS:-}" ]; then
    # A mount namespace of our own: nothing to undo, however this ends.
    MY_ALLOC_OWN_MOUNTS=1 exec unshare --mount --propagation private \
      "$0" "$root" "$@"
  fi
  root=$(realpath -m "$root")
  mkdir -p "$(dirname "$root")"
  bootstrap_system
  mount --rbind /proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  install_system
  cp -L /etc/resolv.conf "$root/etc/" 2>/dev/null || true
  configure_bazel
  copy_sources
  in_root sh -c 'cd /src/my_alloc && bazel --version && gcc --version |
    head -n 1 && bazel build //... && exec bazel test "$@"' \
    sh "${@:-//...}"
}

main "$@"
