// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Replays a program on several allocators, each in processes of its own, and
// gives what it took.

#ifndef MY_ALLOC_LEAKCHECK_REPLAY_RUN_H_
#define MY_ALLOC_LEAKCHECK_REPLAY_RUN_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "heap/private_heap.h"
#include "leakcheck/replay_pass.h"
#include "leakcheck/replay_program.h"

namespace leakcheck {

struct ReplaySettings {
  std::vector<std::string> allocators;  // See ReplayAllocatorNames().
  heap_options_t heap_options = {};
  bool is_concurrent = false;
  int rounds = 5;
  size_t samples = 20;
};

struct ReplayResult {
  std::string allocator;
  // Medians over the rounds; a loop that calls nothing is taken off.
  uint64_t cpu_ns = 0;
  uint64_t wall_ns = 0;
  uint64_t first_cpu_ns = 0;  // Of the first round, in fresh memory.
  // Each call's shortest time over the rounds, of these the longest.
  uint64_t longest_call_ns = 0;
  uint64_t refused_count = 0;
  uint64_t longest_steps = 0;    // 0: not counted.
  uint64_t footprint_bytes = 0;  // The most that was resident in a sample.
  std::vector<ReplaySample> samples;
};

// The processes take turns round by round, so that whatever else the machine
// does hits all. The calling process has one thread. Returns "" or what went
// wrong, in one line.
std::string RunReplay(const ReplayProgram &program,
                      const ReplaySettings &settings,
                      std::vector<ReplayResult> *out_results);

}  // namespace leakcheck

#endif  // MY_ALLOC_LEAKCHECK_REPLAY_RUN_H_
