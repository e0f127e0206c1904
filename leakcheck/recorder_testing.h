// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// For tests of the recorder: runs programs under libleakcheck.so, each run with
// a folder of its own for its logs.

#ifndef MY_ALLOC_LEAKCHECK_RECORDER_TESTING_H_
#define MY_ALLOC_LEAKCHECK_RECORDER_TESTING_H_

#include <string>
#include <vector>

#include "leakcheck/log_replay.h"

namespace leakcheck {

// Where Bazel put a file of `data`, named from the root of the repository.
std::string RunfilePath(const std::string &path);

struct RunResult {
  int exit_code = -1;  // -N: killed by signal N.
  int pid = 0;
  std::string output;
  std::string errors;
};

class RecordedRun {
 public:
  // Makes a new, empty folder.
  RecordedRun();
  ~RecordedRun();
  RecordedRun(const RecordedRun &) = delete;
  RecordedRun &operator=(const RecordedRun &) = delete;

  const std::string &folder() const {
    return folder_;
  }

  // Runs `arguments` with the recorder preloaded, in the folder, with
  // NAME=value `environment` besides PATH and the default LEAKCHECK_LOG.
  RunResult Run(const std::vector<std::string> &arguments,
                const std::vector<std::string> &environment = {}) const;
  // The same without the recorder.
  RunResult RunBare(const std::vector<std::string> &arguments,
                    const std::vector<std::string> &environment = {}) const;

  // Names of the logs, sorted: all, or those of one process.
  std::vector<std::string> Logs() const;
  std::vector<std::string> LogsOf(int pid) const;

  // Path of a file in the folder.
  std::string Path(const std::string &name) const;

 private:
  std::string folder_;
};

// The function of an ELF file's symbol table that holds `address` (as in the
// file), "" when there is none.
std::string FunctionAt(const std::string &elf_path, uint64_t address);

// The functions on a stack, innermost first; "?" for those without a symbol.
std::vector<std::string> StackFunctions(const LogReplay &replay,
                                        uint32_t stack_id);

}  // namespace leakcheck

#endif  // MY_ALLOC_LEAKCHECK_RECORDER_TESTING_H_
