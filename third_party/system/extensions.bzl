# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""The system libraries for MODULE.bazel."""

load(":system.bzl", "system_repositories")

def _system_impl(_ctx):
    system_repositories()

system = module_extension(implementation = _system_impl)
