#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Bazel's part of benchmark.py: `bazel run //heap:benchmark -- --help`. Bazel
# gives the first five arguments.

set -euo pipefail

script=$1 library=$2 unchecked=$3 workload=$4 measure=$5
shift 5
command -v python3 >/dev/null ||
  { echo "benchmark: needs python3; third_party/debian/setup.sh" >&2; exit 1; }
exec python3 "$script" "$library" "$unchecked" "$workload" "$measure" "$@"
