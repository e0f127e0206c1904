#!/bin/sh
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Runs a libFuzzer target as a Bazel test: new inputs go to the test's scratch
# folder (libFuzzer writes to the first folder it is given), crashes to the
# test's outputs, where bazel-testlogs shows them.
set -eu
target=$1
shift
mkdir -p "$TEST_TMPDIR/new_inputs"
exec "$target" "$TEST_TMPDIR/new_inputs" \
  -artifact_prefix="$TEST_UNDECLARED_OUTPUTS_DIR/" "$@"
