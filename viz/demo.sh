#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Records what Debian's sqlite3 does with its heap while it builds and queries a
# table, and draws a report of it:
#
#   bazel run //viz:demo                    report in ./sqlite3.html
#   bazel run //viz:demo -- /tmp/demo.html  report there
#   bazel run //viz:demo -- --keep-log      and the log beside it
#
# Bazel gives the first three arguments.

set -euo pipefail

viz=$PWD/$1
preload=$PWD/$2
sql=$PWD/$3
shift 3

die() {
  echo "demo: $*" >&2
  exit 1
}

keep_log=
out=sqlite3.html
for argument; do
  case $argument in
    --keep-log) keep_log=yes ;;
    -*) die "unknown option $argument; there is --keep-log" ;;
    *) out=$argument ;;
  esac
done
cd "${BUILD_WORKING_DIRECTORY:-.}"

command -v sqlite3 >/dev/null ||
  die "sqlite3 is not installed; third_party/debian/setup.sh installs it"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
log=$scratch/sqlite3.heaplog

echo "demo: sqlite3 builds and queries a table of 100,000 rows on our malloc"
LEAKCHECK_LOG=$log LD_PRELOAD=$preload sqlite3 :memory: <"$sql" \
  >"$scratch/answers.txt" || die "sqlite3 failed"
[ -s "$scratch/answers.txt" ] || die "sqlite3 answered nothing"
[ -s "$log" ] || die "the recorder wrote no log"
if [ -n "$keep_log" ]; then
  cp "$log" "${out%.html}.heaplog"
fi

"$viz" report "$log" -o "$out"
echo "demo: open $(realpath "$out") in a browser"
