# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""@rules_cc for Debian 12's Bazel 4.2.3: every rule is the native one.

Debian's own rules_cc 0.0.4 imports `use_cpp_toolchain`, which the
@bazel_tools of 4.2.3 does not have, so it cannot be loaded. The list covers
what this repository and @bazel_tools load.
"""

cc_binary = native.cc_binary
cc_import = native.cc_import
cc_library = native.cc_library
cc_proto_library = native.cc_proto_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
fdo_prefetch_hints = native.fdo_prefetch_hints
fdo_profile = native.fdo_profile
objc_import = native.objc_import
objc_library = native.objc_library
