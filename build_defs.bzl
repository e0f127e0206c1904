# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""Macros for every target of my_alloc: one place for flags and kinds of test.

Libraries are C11, tools and tests C++17; warnings are errors in our code and
silent in external repositories. In a project that uses my_alloc as an external
repository they are no errors: its compiler may know more of them. Every macro
passes further attributes (`visibility`, `linkopts`, `local_defines`, `malloc`,
`size`, ...) to the rule below it; `copts` are added after ours.

Tags of tests, which .bazelrc's configs and .ci/run read:

    no-asan, no-tsan, no-ubsan, no-valgrind
                   not under that config. A test that replaces malloc is
                   `no-asan`, `no-tsan` and `no-valgrind`: those bring their
                   own malloc. So are tests that preload ours into a program.
    no-sanitizer   under none of them: it runs no C or C++ of ours that
                   another test does not run (layering, benchmark_smoke,
                   headers), or runs programs that are not ours.
    fuzz           a fuzz target: fuzzed under --config=fuzz, a replay of its
                   corpus otherwise. Set by my_alloc_fuzz_test.
    benchmark      one iteration of a benchmark. Set by my_alloc_benchmark.
    layering       a forbidden arrow. Set by my_alloc_forbidden_arrow_test.
    browser        needs Chromium.
"""

load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")
load("@rules_shell//shell:sh_test.bzl", "sh_test")

_WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",  # See _warnings().
    "-Wcast-qual",
    "-Wformat=2",
    "-Wpointer-arith",
    "-Wshadow",
    "-Wundef",
    "-Wvla",
    "-Wwrite-strings",
]

_C_COPTS = [
    "-std=c11",
    "-Wmissing-prototypes",
    "-Wold-style-definition",
    "-Wstrict-prototypes",
]

# -std=c11 alone hides sbrk, MAP_ANONYMOUS, memfd_create.
_C_DEFINES = ["_GNU_SOURCE"]

_CC_COPTS = [
    "-std=c++17",
    "-Wnon-virtual-dtor",
    "-Woverloaded-virtual",
]

def _is_main_repository():
    """Tells whether the package that calls is of the project being built."""
    if hasattr(native, "repo_name"):  # Bazel 7 and later.
        return native.repo_name() == ""
    return native.repository_name() == "@"

def _warnings():
    if _is_main_repository():
        return _WARNINGS
    return [flag for flag in _WARNINGS if flag != "-Werror"]

def _c_copts():
    return _warnings() + _C_COPTS

def _cc_copts():
    return _warnings() + _CC_COPTS

_FUZZ = str(Label("//:fuzz"))
_FUZZ_REPLAY = str(Label("//third_party/libfuzzer:replay_main"))

def my_alloc_c_library(
        name,
        copts = [],
        linkstatic = True,
        local_defines = [],
        **kwargs):
    """A C11 library; symbols are hidden unless marked for export.

    Args:
      name: target name.
      copts: added after the shared ones.
      linkstatic: hidden symbols can be linked statically only.
      local_defines: added after the shared ones.
      **kwargs: attributes of cc_library.
    """
    cc_library(
        name = name,
        copts = _c_copts() + ["-fvisibility=hidden"] + copts,
        linkstatic = linkstatic,
        local_defines = _C_DEFINES + local_defines,
        **kwargs
    )

def my_alloc_c_binary(
        name,
        copts = [],
        linkopts = [],
        local_defines = [],
        **kwargs):
    """A C11 program.

    Args:
      name: target name.
      copts: added after the shared ones.
      linkopts: added after the shared ones.
      local_defines: added after the shared ones.
      **kwargs: attributes of cc_binary.
    """
    cc_binary(
        name = name,
        copts = _c_copts() + copts,
        linkopts = ["-Wl,--as-needed"] + linkopts,
        local_defines = _C_DEFINES + local_defines,
        **kwargs
    )

def my_alloc_c_test(
        name,
        copts = [],
        linkstatic = True,
        local_defines = [],
        **kwargs):
    """A test program in C11: exit code 0 is success.

    Args:
      name: target name.
      copts: added after the shared ones.
      linkstatic: as users link.
      local_defines: added after the shared ones.
      **kwargs: attributes of cc_test.
    """
    cc_test(
        name = name,
        copts = _c_copts() + copts,
        linkstatic = linkstatic,
        local_defines = _C_DEFINES + local_defines,
        **kwargs
    )

def my_alloc_cc_library(name, copts = [], **kwargs):
    """A C++17 library, for tools and tests.

    Args:
      name: target name.
      copts: added after the shared ones.
      **kwargs: attributes of cc_library.
    """
    cc_library(name = name, copts = _cc_copts() + copts, **kwargs)

def my_alloc_cc_binary(name, copts = [], **kwargs):
    """A C++17 program.

    Args:
      name: target name.
      copts: added after the shared ones.
      **kwargs: attributes of cc_binary.
    """
    cc_binary(name = name, copts = _cc_copts() + copts, **kwargs)

def my_alloc_preload(name, deps, linkopts = [], **kwargs):
    """A shared object for LD_PRELOAD; every symbol must be resolved.

    Args:
      name: file name, `lib<x>.so`.
      deps: libraries that go in whole (`alwayslink`) or as needed.
      linkopts: added after the shared ones.
      **kwargs: attributes of cc_binary.
    """
    if not (name.startswith("lib") and name.endswith(".so")):
        fail("my_alloc_preload: %s is not lib<x>.so" % name)
    cc_binary(
        name = name,
        # As needed: Bazel's toolchain names libstdc++ and libm on every link.
        linkopts = [
            "-Wl,--as-needed",
            "-Wl,-z,defs",
            "-Wl,-z,relro,-z,now",
        ] + linkopts,
        linkshared = True,
        deps = deps,
        **kwargs
    )

def my_alloc_cc_test(name, deps = [], copts = [], linkstatic = True, **kwargs):
    """A googletest test; `main` comes with it.

    Args:
      name: target name, `<unit>_test`.
      deps: what is tested.
      copts: added after the shared ones.
      linkstatic: as users link.
      **kwargs: attributes of cc_test.
    """
    cc_test(
        name = name,
        copts = _cc_copts() + copts,
        linkstatic = linkstatic,
        deps = deps + ["@com_google_googletest//:gtest_main"],
        **kwargs
    )

def my_alloc_benchmark(name, deps = [], copts = [], data = [], **kwargs):
    """A google benchmark program, and `<name>_smoke_test` running it once.

    Args:
      name: target name, `<unit>_benchmark`.
      deps: what is measured; google benchmark and its `main` are added.
      copts: added after the shared ones.
      data: files it reads.
      **kwargs: attributes of cc_binary.
    """
    cc_binary(
        name = name,
        testonly = True,
        copts = _cc_copts() + copts,
        data = data,
        deps = deps + ["@com_github_google_benchmark//:benchmark_main"],
        **kwargs
    )
    sh_test(
        name = name + "_smoke_test",
        srcs = [name],
        # So short that every benchmark stops after its first iteration.
        args = ["--benchmark_min_time=0.000000001"],
        data = data,
        tags = ["benchmark", "no-sanitizer"],
    )

def my_alloc_fuzz_test(
        name,
        srcs,
        corpus,
        deps = [],
        copts = [],
        linkopts = [],
        tags = [],
        **kwargs):
    """A libFuzzer target (`LLVMFuzzerTestOneInput`) in C++17.

    Under --config=fuzz it fuzzes, starting from the corpus; otherwise it is
    a test that runs each corpus file once.

    Args:
      name: target name, `<unit>_fuzz`.
      srcs: sources.
      corpus: its seed files and past crashes, in the folder
        `<package>/<name>_corpus` and given by glob. Must not be empty.
      deps: what is fuzzed.
      copts: added after the shared ones.
      linkopts: link options.
      tags: added to `fuzz`.
      **kwargs: attributes of cc_test.
    """
    folder = name + "_corpus"
    for seed in corpus:
        if not seed.startswith(folder + "/"):
            fail("%s: corpus file %s is not in %s/" % (name, seed, folder))
    if not corpus:
        fail("%s: the corpus folder %s/ is empty" % (name, folder))
    cc_test(
        name = name,
        srcs = srcs,
        args = [native.package_name() + "/" + folder],
        copts = _cc_copts() + copts,
        data = corpus,
        linkstatic = True,
        linkopts = linkopts + select({
            _FUZZ: ["-fsanitize=fuzzer"],
            "//conditions:default": [],
        }),
        tags = tags + ["fuzz"],
        deps = deps + select({
            _FUZZ: [],
            "//conditions:default": [_FUZZ_REPLAY],
        }),
        **kwargs
    )

def my_alloc_header_test(name, hdrs, deps):
    """Each public header compiles alone and twice, as C11 and as C++17.

    Strictly so: no _GNU_SOURCE, -Wpedantic.

    Args:
      name: target name, `headers_test`.
      hdrs: headers of this package.
      deps: the targets that own them.
    """
    for language, suffix, std in [("c", ".c", "c11"), ("cc", ".cc", "c++17")]:
        sources = []
        for header in hdrs:
            source = "%s_%s%s" % (name, header.replace(".", "_"), suffix)
            path = native.package_name() + "/" + header
            native.genrule(
                name = "%s_%s_%s" % (name, header.replace(".", "_"), language),
                testonly = True,
                outs = [source],
                cmd = ("printf '#include \"%s\"\\n#include \"%s\"\\n' > $@" %
                       (path, path)),
            )
            sources.append(source)
        cc_library(
            name = "%s_%s" % (name, language),
            testonly = True,
            srcs = sources,
            copts = _warnings() + ["-Wpedantic", "-std=" + std],
            deps = deps,
        )
    native.genrule(
        name = name + "_main",
        testonly = True,
        outs = [name + "_main.c"],
        cmd = "echo 'int main(void) { return 0; }' > $@",
    )
    cc_test(
        name = name,
        size = "small",
        srcs = [name + "_main.c"],
        tags = ["no-sanitizer"],
        deps = [name + "_c", name + "_cc"],
    )

_FORBIDDEN_ARROW_SCRIPT = """#!/bin/sh
test -e {offenders} || exit 2
test -s {offenders} || exit 0
echo "Forbidden arrow: {from_} must not depend on {to}, but reaches:"
sed 's/^/  /' {offenders}
echo "docs/architecture.md lists the arrows that are allowed, and why."
exit 1
"""

def _forbidden_arrow_test_impl(ctx):
    script = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(
        script,
        _FORBIDDEN_ARROW_SCRIPT.format(
            from_ = ctx.attr.from_text,
            to = ctx.attr.to_text,
            offenders = ctx.file.offenders.short_path,
        ),
        is_executable = True,
    )
    runfiles = ctx.runfiles(files = [ctx.file.offenders])
    return [DefaultInfo(executable = script, runfiles = runfiles)]

_forbidden_arrow_test = rule(
    implementation = _forbidden_arrow_test_impl,
    test = True,
    attrs = {
        "from_text": attr.string(mandatory = True),
        "offenders": attr.label(allow_single_file = True, mandatory = True),
        "to_text": attr.string(mandatory = True),
    },
)

# Bzlmod's names of the repositories that have another one here.
_MODULES = {
    "com_github_google_benchmark": "google_benchmark",
    "com_google_absl": "abseil-cpp",
    "com_google_googletest": "googletest",
}

def _label_regex(pattern):
    if pattern == "@/...":
        # All but what rules_cc links to every program.
        return "@++(?!(rules_cc|bazel_tools)[~+/])"
    if pattern.startswith("@") and pattern.endswith("/..."):
        name = pattern[1:-len("/...")]
        names = [name, _MODULES[name]] if name in _MODULES else [name]

        # Bzlmod: `@@abseil-cpp~//`, `@@_main~system~zlib//`, later with `+`.
        return "@+([^/]*[~+])?(%s)([~+][^/]*)?//" % "|".join(names)
    if pattern.endswith("/..."):
        return pattern[:-len("/...")] + "[:/]"
    if pattern.endswith("*"):
        return pattern[:-1]
    return pattern + "$"

def _labels_like(patterns, expression):
    regexes = [_label_regex(pattern) for pattern in patterns]
    return "filter('^(%s)', %s)" % ("|".join(regexes), expression)

def my_alloc_forbidden_arrow_test(name, from_, to, allowed = [], ignored = []):
    """Fails, naming the labels, when deps(from_) reaches `to`.

    All branches of a select() count, whatever the configuration. `from_` and
    `allowed` must be visible to the package of this test.

    `to` and `ignored` are label patterns: `//package/...` for anything in or
    below that package, `//package:name*` for the labels that start so,
    `//package:name` for that one, `@repository/...` for anything of an
    external repository, `@/...` for anything external at all.

    Args:
      name: target name.
      from_: label or list of labels.
      to: pattern or list of patterns of what must not be reached.
      allowed: labels whose own deps() do not count.
      ignored: patterns of labels that do not count.
    """
    roots = [from_] if type(from_) == "string" else from_
    patterns = [to] if type(to) == "string" else to
    expression = "kind(rule, deps(set(%s)))" % " ".join(roots)
    if allowed:
        expression += " except deps(set(%s))" % " ".join(allowed)
    expression = _labels_like(patterns, expression)
    if ignored:
        expression += " except " + _labels_like(ignored, expression)
    native.genquery(
        name = name + "_offenders",
        testonly = True,
        expression = expression,
        opts = ["--noimplicit_deps"],
        scope = roots + allowed,
    )
    _forbidden_arrow_test(
        name = name,
        size = "small",
        from_text = " ".join(roots),
        offenders = name + "_offenders",
        tags = ["layering", "no-sanitizer"],
        to_text = " ".join(patterns),
    )

def my_alloc_layering_tests(name, components):
    """One forbidden-arrow test for each ordered pair of components.

    Pairs that `may_use` allows, directly or through others, have none. One
    more test a component, `<name>_<component>_to_others`, forbids external
    repositories beyond `may_link`, which those it may use may link too.

    Args:
      name: prefix of the tests.
      components: name -> dict of
        targets: the public labels,
        owns: label patterns of all that belongs to it,
        may_use: names of components,
        may_link: patterns of external repositories.
    """
    for source in components:
        component = components[source]
        used = [
            target
            for other in component["may_use"]
            for target in components[other]["targets"]
        ]
        for other in components:
            if other == source or other in component["may_use"]:
                continue
            my_alloc_forbidden_arrow_test(
                name = "%s_%s_to_%s_test" % (name, source, other),
                allowed = used,
                from_ = component["targets"],
                ignored = component["owns"],
                to = components[other]["owns"],
            )
        my_alloc_forbidden_arrow_test(
            name = "%s_%s_to_others_test" % (name, source),
            allowed = used,
            from_ = component["targets"],
            ignored = component["may_link"],
            to = "@/...",
        )
