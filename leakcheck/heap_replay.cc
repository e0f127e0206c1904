// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// heap_replay: which allocator suits a program? Replays its heaplog on each
// strategy of private heaps, and on malloc, which is libc's or whatever is
// preloaded.
//
//   heap_replay run.heaplog
//   heap_replay --allocators=tlsf,malloc --format=json run.heaplog
//   LD_PRELOAD=libother.so heap_replay --allocators=malloc run.heaplog
//
// docs/heap.md says what the figures mean, and what a log does not have.

#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "leakcheck/replay_allocator.h"
#include "leakcheck/replay_program.h"
#include "leakcheck/replay_report.h"
#include "leakcheck/replay_run.h"

ABSL_FLAG(std::vector<std::string>, allocators,
          leakcheck::ReplayAllocatorNames(), "what to replay on");
ABSL_FLAG(std::string, format, "text", "text or json");
ABSL_FLAG(bool, concurrent, false,
          "the log's threads run at once, each in its order");
ABSL_FLAG(int, rounds, 5, "how often times are measured");
ABSL_FLAG(int, samples, 20,
          "how often memory is looked at, beside at the peak");
ABSL_FLAG(uint64_t, limit_mib, 4096,
          "limit of the private heaps, and of what the log may have live");
ABSL_FLAG(uint64_t, operations_max, 100'000'000,
          "refuse a log of more operations, which take 24 bytes each");
ABSL_FLAG(uint64_t, granule_bytes, 0,
          "of private heaps but the segregated one; 0: the default");
ABSL_FLAG(uint64_t, split_bytes, 0, "of private heaps; 0: the default");
ABSL_FLAG(uint64_t, span_bytes, 0, "of private heaps; 0: the default");
ABSL_FLAG(unsigned, tlsf_lists_log2, 0, "of private heaps; 0: the default");

namespace {

constexpr uint64_t kLimitMibMax = uint64_t{1} << 27;  // 128 TiB.

// Returns "" or which flag is wrong.
std::string CheckFlags() {
  const std::string format = absl::GetFlag(FLAGS_format);
  if (format != "text" && format != "json") {
    return "--format is text or json";
  }
  if (absl::GetFlag(FLAGS_rounds) < 1 || absl::GetFlag(FLAGS_rounds) > 1000) {
    return "--rounds is 1 to 1000";
  }
  if (absl::GetFlag(FLAGS_samples) < 1 ||
      absl::GetFlag(FLAGS_samples) > 100000) {
    return "--samples is 1 to 100000";
  }
  const uint64_t limit_mib = absl::GetFlag(FLAGS_limit_mib);
  if (limit_mib < 1 || limit_mib > kLimitMibMax) {
    return absl::StrCat("--limit_mib is 1 to ", kLimitMibMax);
  }
  const std::vector<std::string> &names = leakcheck::ReplayAllocatorNames();
  const std::vector<std::string> chosen = absl::GetFlag(FLAGS_allocators);
  const bool are_known =
      std::all_of(chosen.begin(), chosen.end(), [&](const std::string &name) {
        return std::find(names.begin(), names.end(), name) != names.end();
      });
  if (chosen.empty() || !are_known) {
    return absl::StrCat("--allocators are some of ", absl::StrJoin(names, ","));
  }
  return "";
}

leakcheck::ReplaySettings Settings(uint32_t thread_count) {
  leakcheck::ReplaySettings settings;
  settings.allocators = absl::GetFlag(FLAGS_allocators);
  settings.is_concurrent = absl::GetFlag(FLAGS_concurrent);
  settings.rounds = absl::GetFlag(FLAGS_rounds);
  settings.samples = static_cast<size_t>(absl::GetFlag(FLAGS_samples));
  settings.heap_options.limit_bytes = absl::GetFlag(FLAGS_limit_mib) << 20;
  settings.heap_options.granule_bytes = absl::GetFlag(FLAGS_granule_bytes);
  settings.heap_options.split_bytes = absl::GetFlag(FLAGS_split_bytes);
  settings.heap_options.span_bytes = absl::GetFlag(FLAGS_span_bytes);
  settings.heap_options.tlsf_lists_log2 = absl::GetFlag(FLAGS_tlsf_lists_log2);
  // A program of several threads needs the lock, however it is replayed.
  settings.heap_options.single_threaded = thread_count == 1;
  return settings;
}

// Returns "" or what is wrong.
std::string Run(const std::string &path) {
  leakcheck::ReplayCompileOptions options;
  options.is_concurrent = absl::GetFlag(FLAGS_concurrent);
  options.limit_bytes = absl::GetFlag(FLAGS_limit_mib) << 20;
  options.operations_max = absl::GetFlag(FLAGS_operations_max);
  leakcheck::ReplayProgram program;
  std::string wrong = CompileReplay(path, options, &program);
  if (!wrong.empty()) {
    return wrong;
  }
  // What reading took and freed would be there for the malloc to use.
  malloc_trim(0);
  const leakcheck::ReplaySettings settings = Settings(program.thread_count);
  std::vector<leakcheck::ReplayResult> results;
  wrong = RunReplay(program, settings, &results);
  if (!wrong.empty()) {
    return wrong;
  }
  const auto format = absl::GetFlag(FLAGS_format) == "json"
                          ? leakcheck::ReplayJson
                          : leakcheck::ReplayText;
  const std::string text = format(path, program, settings, results);
  if (fwrite(text.data(), 1, text.size(), stdout) != text.size() ||
      fflush(stdout) != 0) {
    return "standard output cannot be written";
  }
  return "";
}

}  // namespace

int main(int argc, char **argv) {
  absl::SetProgramUsageMessage(absl::StrCat(
      "replays a heaplog on several allocators.\n\n  ", argv[0], " FILE"));
  const std::vector<char *> arguments = absl::ParseCommandLine(argc, argv);
  const std::string usage = arguments.size() == 2
                                ? CheckFlags()
                                : std::string(absl::ProgramUsageMessage());
  if (!usage.empty()) {
    absl::FPrintF(stderr, "%s\n", usage);
    return 2;
  }
  const std::string wrong = Run(arguments[1]);
  if (!wrong.empty()) {
    absl::FPrintF(stderr, "%s: %s\n", arguments[1], wrong);
    return 1;
  }
  return 0;
}
