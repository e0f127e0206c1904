# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""Libraries of the system as Bazel repositories, found by pkg-config.

Headers come from the compiler's own search path: naming /usr/include as an
include directory would break `#include_next`.
"""

def _link_options(ctx, words):
    options = []
    for word in words:
        if word.startswith("-"):
            options.append(word)
            continue
        result = ctx.execute(["pkg-config", "--libs", word])
        if result.return_code != 0:
            fail(("%s: the development files of %s are not installed. " +
                  "On Debian 12 run third_party/debian/setup.sh (package " +
                  "%s).\n%s") %
                 (ctx.name, word, ctx.attr.debian_package, result.stderr))
        options += [o for o in result.stdout.strip().split(" ") if o]
    return options

def build_file_of(ctx, targets):
    """Returns the text of a BUILD file with one cc_library a target.

    Args:
      ctx: the repository context.
      targets: dict from target name to words; a word is a pkg-config module
        or, when it starts with a dash, a link option.

    Returns:
      the text.
    """
    if not ctx.which("pkg-config"):
        fail("%s: pkg-config is not installed. On Debian 12 run " % ctx.name +
             "third_party/debian/setup.sh (package pkg-config).")
    lines = [
        "load(\"@rules_cc//cc:defs.bzl\", \"cc_library\")",
        "package(default_visibility = [\"//visibility:public\"])",
    ]
    for name in targets:
        lines.append("cc_library(name = %s, linkopts = %s)" %
                     (repr(name), repr(_link_options(ctx, targets[name]))))
    return "\n".join(lines) + "\n"

def _system_library_impl(ctx):
    ctx.file("BUILD.bazel", build_file_of(ctx, ctx.attr.targets))

system_library = repository_rule(
    implementation = _system_library_impl,
    doc = "A library of the system: one cc_library for each of `targets`.",
    attrs = {
        "debian_package": attr.string(
            mandatory = True,
            doc = "The Debian package to name when it is missing.",
        ),
        "targets": attr.string_list_dict(
            mandatory = True,
            doc = "Target name to pkg-config modules or link options.",
        ),
    },
    environ = ["PKG_CONFIG_PATH"],
)

# buildifier: disable=unnamed-macro
def system_repositories():
    """Declares the system libraries that tools use."""
    system_library(
        name = "elfutils",
        debian_package = "libdw-dev",
        targets = {
            "libdw": ["libdw"],
            "libelf": ["libelf"],
        },
    )
    system_library(
        name = "zlib",
        debian_package = "zlib1g-dev",
        targets = {"zlib": ["zlib"]},
    )
