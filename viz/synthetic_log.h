// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Makes logs of a program that never ran, for tests: threads that load, work,
// leak and clean up on a small allocator of size classes, with a tree of call
// stacks, mapped memory and samples of the resident set. The same options give
// the same log.

#ifndef MY_ALLOC_VIZ_SYNTHETIC_LOG_H_
#define MY_ALLOC_VIZ_SYNTHETIC_LOG_H_

#include <cstdint>
#include <string>

namespace viz {

struct SyntheticLogOptions {
  uint64_t events = 10000;  // About as many.
  uint32_t threads = 3;     // At most 64.
  uint32_t stacks = 300;
  uint64_t seed = 1;
  // How much is live in the working phase.
  uint64_t live_blocks = 2000;
  // Names of modules and threads, paths and arguments that try to break out of
  // the page.
  bool hostile_names = false;
  bool clean_end = true;
};

// Returns "" or what went wrong.
std::string WriteSyntheticLog(const std::string &path,
                              const SyntheticLogOptions &options);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_SYNTHETIC_LOG_H_
