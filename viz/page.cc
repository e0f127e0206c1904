// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/page.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "viz/sha256.h"

namespace viz {
namespace {

std::string HashSource(absl::string_view text) {
  return absl::StrCat("'sha256-", absl::Base64Escape(Sha256(text)), "'");
}

}  // namespace

std::string MakePage(absl::string_view data) {
  const std::string style = absl::StrCat(kUplotStyle, "\n", kPageStyle);
  const std::string uplot =
      absl::StrCat("/*\nuPlot (https://github.com/leeoniya/uPlot)\n\n",
                   kUplotLicense, "*/\n", kUplotScript);
  const std::string script = absl::StrCat("'use strict';\n", kPageScript);
  const std::string policy = absl::StrCat(
      "default-src 'none'; base-uri 'none'; form-action 'none'; script-src ",
      HashSource(uplot), " ", HashSource(script), "; style-src ",
      HashSource(style));
  return absl::StrCat(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"",
      policy,
      "\">\n<meta name=\"viewport\" content=\"width=device-width, "
      "initial-scale=1\">\n<meta name=\"generator\" content=\"my_alloc viz\">\n"
      "<title>Heap report</title>\n<style>",
      style, "</style>\n</head>\n<body>\n", kPageBody,
      "<script type=\"application/octet-stream\" id=\"data\">",
      absl::Base64Escape(data), "</script>\n<script>", uplot,
      "</script>\n<script>", script, "</script>\n</body>\n</html>\n");
}

}  // namespace viz
