# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""The installed npm packages as the repository @npm.

`npm ci` puts what package-lock.json pins into node_modules beside this file
(third_party/debian/setup.sh does it); this rule checks the versions and links
the folders. Targets:

    @npm//:uplot_js, :uplot_css, :uplot_license   go into viz's pages
    @npm//:playwright_core                        all files, for browser tests
    @npm//:playwright_core_main                   its index.js, for $(rootpath)
    @npm//:buildifier                             the executable
"""

_BUILD = """
package(default_visibility = ["//visibility:public"])

filegroup(
    name = "uplot_js",
    srcs = ["node_modules/uplot/dist/uPlot.iife.min.js"],
)

filegroup(
    name = "uplot_css",
    srcs = ["node_modules/uplot/dist/uPlot.min.css"],
)

filegroup(
    name = "uplot_license",
    srcs = ["node_modules/uplot/LICENSE"],
)

filegroup(
    name = "playwright_core",
    srcs = glob(["node_modules/playwright-core/**"]),
)

filegroup(
    name = "playwright_core_main",
    srcs = ["node_modules/playwright-core/index.js"],
)

filegroup(
    name = "buildifier",
    srcs = ["node_modules/@bazel/buildifier/buildifier-linux_{arch}"],
)
"""

_HINT = (" Run third_party/debian/setup.sh, or on another system " +
         "`npm ci` in third_party/npm.")

def _npm_packages_impl(ctx):
    lock = ctx.path(Label("//third_party/npm:package-lock.json"))
    locked = json.decode(ctx.read(lock))["packages"]
    for folder in locked:
        if not folder:
            continue
        manifest = ctx.path("%s/%s/package.json" % (lock.dirname, folder))
        if not manifest.exists:
            fail("npm package %s is not installed." % folder + _HINT)
        installed = json.decode(ctx.read(manifest))["version"]
        if installed != locked[folder]["version"]:
            fail("npm package %s is %s, but %s is pinned." %
                 (folder, installed, locked[folder]["version"]) + _HINT)
        ctx.symlink("%s/%s" % (lock.dirname, folder), folder)
    machine = ctx.execute(["uname", "-m"]).stdout.strip()
    arch = {"aarch64": "arm64", "x86_64": "amd64"}.get(machine, machine)
    ctx.file("BUILD.bazel", _BUILD.replace("{arch}", arch))

npm_packages = repository_rule(
    implementation = _npm_packages_impl,
    doc = "Links the packages in third_party/npm/node_modules.",
    local = True,
)
