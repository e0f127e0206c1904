// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#ifndef MY_ALLOC_VIZ_ATOMIC_FILE_H_
#define MY_ALLOC_VIZ_ATOMIC_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace viz {

// Makes `path` a file with these contents, or leaves it as it is: the contents
// go to a new file in the same folder, which then takes the name. Something
// that is not a regular file (a terminal, /dev/stdout) is written to as it is.
absl::Status WriteFileAtomically(const std::string &path,
                                 absl::string_view contents);

// Fails, as WriteFileAtomically() would, where it is plain before writing that
// it cannot: no such folder, or no permission. For those who work long before
// they write.
absl::Status CheckIsWritable(const std::string &path);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_ATOMIC_FILE_H_
