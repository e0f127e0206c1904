# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""Debian 12's packages under the labels that upstream projects use."""

load("//third_party/system:system.bzl", "build_file_of", "system_library")
load(":abseil.bzl", "ABSEIL")

def _debian_abseil_impl(ctx):
    for package in ABSEIL:
        modules = {name: [ABSEIL[package][name]] for name in ABSEIL[package]}
        ctx.file(
            "absl/%s/BUILD.bazel" % package,
            build_file_of(ctx, modules),
        )

_debian_abseil = repository_rule(
    implementation = _debian_abseil_impl,
    attrs = {"debian_package": attr.string(default = "libabsl-dev")},
    environ = ["PKG_CONFIG_PATH"],
)

# buildifier: disable=unnamed-macro
def debian_repositories():
    """Declares the repositories that are Debian packages."""

    # What Bazel itself loads even if nobody here does.
    native.local_repository(
        name = "rules_cc",
        path = "third_party/debian/overlay/rules_cc",
    )
    native.local_repository(
        name = "rules_shell",
        path = "third_party/debian/overlay/rules_shell",
    )
    native.local_repository(
        name = "remote_coverage_tools",
        path = "third_party/debian/overlay/remote_coverage_tools",
    )
    native.local_repository(
        name = "rules_java",
        path = "/usr/share/bazel/rules/java",
    )
    native.local_repository(
        name = "rules_proto",
        path = "/usr/share/bazel/rules/proto",
    )
    native.local_repository(
        name = "bazel_skylib",
        path = "/usr/share/bazel/tools/skylib",
    )
    native.local_repository(
        name = "platforms",
        path = "/usr/share/bazel/tools/platforms",
    )

    native.new_local_repository(
        name = "com_google_googletest",
        build_file = "@my_alloc//third_party/debian:googletest.BUILD",
        path = "/usr/src/googletest",
    )
    _debian_abseil(name = "com_google_absl")
    system_library(
        name = "com_github_google_benchmark",
        debian_package = "libbenchmark-dev",
        targets = {
            "benchmark": ["benchmark", "-pthread"],
            "benchmark_main": ["-lbenchmark_main", "benchmark", "-pthread"],
        },
    )
