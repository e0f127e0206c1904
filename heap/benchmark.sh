#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Bazel's part of benchmark.py: `bazel run //heap:benchmark -- --help`. Bazel
# gives the first four arguments.

set -euo pipefail

script=$1 library=$2 workload=$3 measure=$4
shift 4
command -v python3 >/dev/null ||
  { echo "benchmark: needs python3; third_party/debian/setup.sh" >&2; exit 1; }
exec python3 "$script" "$library" "$workload" "$measure" "$@"
