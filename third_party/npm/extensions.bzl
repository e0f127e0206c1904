# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""The npm packages for MODULE.bazel."""

load(":npm.bzl", "npm_packages")

def _npm_impl(_ctx):
    npm_packages(name = "npm")

npm = module_extension(implementation = _npm_impl)
