// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Builds heaplogs byte by byte, right or wrong in any place, for tests and
// fuzzing of the reader.

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_BUILDER_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_BUILDER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "leakcheck/heaplog_format.h"

namespace heaplog_test {

// What LogBuilder says of when its log began.
inline constexpr uint64_t kStartNs = 1000;

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

}  // namespace heaplog_test

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_BUILDER_H_
