// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the heaplog tests share: reading a whole log into memory.

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_TEST_UTIL_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_TEST_UTIL_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "leakcheck/heaplog.h"
#include "leakcheck/heaplog_builder.h"
#include "leakcheck/heaplog_writer.h"

namespace heaplog_test {

// A path in the test's scratch folder; whatever was there is removed.
std::string TempPath(const std::string &name);
std::string ReadFile(const std::string &path);
void WriteFile(const std::string &path, const std::string &bytes);

// Options for a log that begins at kStartNs.
heaplog_writer_options_t Options(const std::string &path);

struct Module {
  heaplog_module_t module;  // `path` is NULL here.
  std::string path;
};

// All that a log holds.
struct Log {
  int open_status = 0;
  int status = 0;
  heaplog_error_t error = {};
  std::vector<heaplog_event_t> events;
  heaplog_info_t info = {};  // Its strings are below.
  std::string executable;
  std::string command_line;
  std::map<uint32_t, std::pair<uint32_t, uint64_t>> stacks;  // parent, ip
  std::vector<Module> modules;
  std::vector<heaplog_thread_t> threads;
};

// Reads a log to its end, `batch` events at a time, and checks what holds for
// every log: times do not go back, indices are in range.
Log ReadLog(const std::string &path, size_t batch = 100);
// The same of bytes in memory.
Log ReadBytes(const std::string &bytes, size_t batch = 100);

bool Same(const heaplog_event_t &a, const heaplog_event_t &b);
std::string ToString(const heaplog_event_t &event);

// One chunk of one lane with the thread announced and `payload` behind.
Log ReadOneChunk(const Bytes &payload);

}  // namespace heaplog_test

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_TEST_UTIL_H_
