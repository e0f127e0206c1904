// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SHA-256 (FIPS 180-4), for the hashes by which a page's content security
// policy names the scripts and styles that may run.

#ifndef MY_ALLOC_VIZ_SHA256_H_
#define MY_ALLOC_VIZ_SHA256_H_

#include <string>

#include "absl/strings/string_view.h"

namespace viz {

// Returns the 32 bytes of the hash.
std::string Sha256(absl::string_view message);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_SHA256_H_
