#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Runs the demo, and compares what it prints with what its page shows:
#
#   demo_test.sh DEMO VIZ PRELOAD SQL -- page_test.sh's arguments

set -euo pipefail

demo=("${@:1:4}")
shift 5
"${demo[@]}" --keep-log "$TEST_TMPDIR/demo.html" | tee "$TEST_TMPDIR/demo.txt"
DEMO_DIR=$TEST_TMPDIR exec "$@"
