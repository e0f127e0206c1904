// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Makes one HTML file of the page's parts and its data. The file needs nothing
// else, and its content security policy forbids it to ask for anything: nothing
// may be loaded, and only the scripts and styles whose hashes it names may run.

#ifndef MY_ALLOC_VIZ_PAGE_H_
#define MY_ALLOC_VIZ_PAGE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace viz {

// `data`: what PackReport() made.
std::string MakePage(absl::string_view data);

// The parts, as the build embedded them.
extern const char kPageBody[];
extern const char kPageStyle[];
extern const char kPageScript[];
extern const char kUplotScript[];
extern const char kUplotStyle[];
extern const char kUplotLicense[];

}  // namespace viz

#endif  // MY_ALLOC_VIZ_PAGE_H_
