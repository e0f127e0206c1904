# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""@rules_shell for Debian 12's Bazel 4.2.3: the native rule."""

sh_test = native.sh_test
