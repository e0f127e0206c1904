// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the heaplog tests share: reading a whole log into memory, and building
// logs byte by byte, right or wrong in any place.

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_TEST_UTIL_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_TEST_UTIL_H_

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "leakcheck/heaplog.h"
#include "leakcheck/heaplog_format.h"
#include "leakcheck/heaplog_writer.h"

namespace heaplog_test {

// A path in the test's scratch folder; whatever was there is removed.
std::string TempPath(const std::string &name);
std::string ReadFile(const std::string &path);
void WriteFile(const std::string &path, const std::string &bytes);

// Options for a log that begins at time 1000.
inline constexpr uint64_t kStartNs = 1000;
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

// Numbers and strings as they lie in a record.
class Bytes {
 public:
  Bytes &Byte(unsigned int value);
  Bytes &Varint(uint64_t value);
  Bytes &Signed(int64_t value);
  Bytes &String(const std::string &text);
  Bytes &Append(const std::string &bytes);
  // A record: type, length, body.
  Bytes &Framed(unsigned int type, const Bytes &body);
  // THREAD with this id, named after it.
  Bytes &Thread(uint32_t id);
  // A compact event with no optional fields.
  Bytes &Free(uint64_t time_delta, int64_t address_delta);

  const std::string &str() const {
    return bytes_;
  }

 private:
  std::string bytes_;
};

// Makes a log file in memory. Checksums are made last, so that a test may
// change any other field and have a file that is consistent but wrong.
class LogBuilder {
 public:
  LogBuilder();

  heaplog_file_header_t &header() {
    return header_;
  }
  // Adds a chunk; returns its header for changes. By default the chunk's index
  // is right, its horizon and base are `base_ns`.
  heaplog_chunk_header_t &Chunk(uint32_t lane, uint32_t sequence,
                                uint64_t base_ns, const Bytes &payload);
  // The file, sealed with right checksums.
  std::string Build() const;

 private:
  struct ChunkParts {
    heaplog_chunk_header_t header;
    std::string payload;
  };
  heaplog_file_header_t header_;
  std::vector<ChunkParts> chunks_;
};

// One chunk of one lane with the thread announced and `payload` behind.
Log ReadOneChunk(const Bytes &payload);

}  // namespace heaplog_test

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_TEST_UTIL_H_
