// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Writes a synthetic log, for tests and for measuring:
//
//   synthetic_log --events=10000000 --live_blocks=200000 out.heaplog

#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "viz/synthetic_log.h"

ABSL_FLAG(uint64_t, events, 10000, "About how many events.");
ABSL_FLAG(uint32_t, threads, 3, "How many threads, at most 64.");
ABSL_FLAG(uint32_t, stacks, 300, "How many call stacks.");
ABSL_FLAG(uint64_t, live_blocks, 2000, "Live blocks in the working phase.");
ABSL_FLAG(uint64_t, seed, 1, "Of the random numbers.");
ABSL_FLAG(bool, hostile_names, false, "Names that try to break the page.");

int main(int argc, char **argv) {
  const std::vector<char *> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() != 2) {
    fprintf(stderr, "usage: synthetic_log [flags] OUT\n");
    return 1;
  }
  viz::SyntheticLogOptions options;
  options.events = absl::GetFlag(FLAGS_events);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.stacks = absl::GetFlag(FLAGS_stacks);
  options.live_blocks = absl::GetFlag(FLAGS_live_blocks);
  options.seed = absl::GetFlag(FLAGS_seed);
  options.hostile_names = absl::GetFlag(FLAGS_hostile_names);
  const std::string error = viz::WriteSyntheticLog(arguments[1], options);
  if (!error.empty()) {
    fprintf(stderr, "synthetic_log: %s\n", error.c_str());
    return 1;
  }
  return 0;
}
