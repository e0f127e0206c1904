// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A replay's results as text for people, or as JSON for programs.

#ifndef MY_ALLOC_LEAKCHECK_REPLAY_REPORT_H_
#define MY_ALLOC_LEAKCHECK_REPLAY_REPORT_H_

#include <string>
#include <vector>

#include "leakcheck/replay_program.h"
#include "leakcheck/replay_run.h"

namespace leakcheck {

// 1 - requested / usable: the share of live blocks that nobody asked for.
double ReplayInternal(const ReplaySample &sample);
// 1 - usable / resident: the share of the memory that is in no block.
double ReplayExternal(const ReplaySample &sample);

std::string ReplayText(const std::string &path, const ReplayProgram &program,
                       const ReplaySettings &settings,
                       const std::vector<ReplayResult> &results);

std::string ReplayJson(const std::string &path, const ReplayProgram &program,
                       const ReplaySettings &settings,
                       const std::vector<ReplayResult> &results);

}  // namespace leakcheck

#endif  // MY_ALLOC_LEAKCHECK_REPLAY_REPORT_H_
