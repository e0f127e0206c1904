#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Runs a test script in Node with the paths of what it needs:
#
#   page_test.sh PLAYWRIGHT SCRIPT VIZ SYNTHETIC_LOG LOG_FIGURES

set -euo pipefail

# A file of the runfiles; Bazel versions differ in where external ones are.
resolve() {
  if [ -e "$1" ]; then
    echo "$PWD/$1"
  else
    echo "$PWD/../${1#external/}"
  fi
}

command -v node >/dev/null || {
  echo "page_test.sh: node is not in PATH=$PATH" >&2
  exit 1
}
PLAYWRIGHT=$(resolve "$1")
VIZ=$(resolve "$3")
SYNTHETIC_LOG=$(resolve "$4")
LOG_FIGURES=$(resolve "$5")
script=$(resolve "$2")
export PLAYWRIGHT VIZ SYNTHETIC_LOG LOG_FIGURES
# Chromium writes to its home.
export HOME=$TEST_TMPDIR
exec node "$script"
