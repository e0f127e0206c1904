#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Measures reports of synthetic logs: how long they take to make and to open,
# and how large they are.
#
#   bazel run //viz:measure                 logs of 100 k, 1 M and 10 M events
#   bazel run //viz:measure -- 100000000    a log of 100 M events (0.7 GB)
#
# Bazel gives the arguments up to --, which are page_test.sh and its own.

set -euo pipefail

command=()
while [ "$1" != -- ]; do
  command+=("$1")
  shift
done
shift
TEST_TMPDIR=$(mktemp -d)
trap 'rm -rf "$TEST_TMPDIR"' EXIT
MEASURE_EVENTS=${*:-100000 1000000 10000000}
export TEST_TMPDIR MEASURE_EVENTS
"${command[@]}"
