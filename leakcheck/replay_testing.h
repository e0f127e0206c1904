// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the replay's tests share: a log of a few events, one nanosecond apart.

#ifndef MY_ALLOC_LEAKCHECK_REPLAY_TESTING_H_
#define MY_ALLOC_LEAKCHECK_REPLAY_TESTING_H_

#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/heaplog_writer.h"

namespace leakcheck {

class TestLog {
 public:
  explicit TestLog(const std::string &name, uint64_t threads = 1)
      : path_(heaplog_test::TempPath(name)) {
    heaplog_writer_options_t options = heaplog_test::Options(path_);
    EXPECT_EQ(heaplog_writer_open(&options, &writer_), 0);
    streams_.resize(threads);
    for (uint64_t i = 0; i < threads; ++i) {
      EXPECT_EQ(heaplog_stream_open(writer_, heaplog_test::kStartNs, i + 1, "t",
                                    &streams_[i]),
                0);
    }
  }
  ~TestLog() {
    heaplog_writer_close(writer_);
    unlink(path_.c_str());
  }
  TestLog(const TestLog &) = delete;
  TestLog &operator=(const TestLog &) = delete;

  TestLog &Alloc(uint64_t address, uint64_t size_bytes, size_t thread = 0) {
    EXPECT_TRUE(heaplog_append_alloc(streams_[thread], Next(), address,
                                     size_bytes, size_bytes, 0));
    return *this;
  }
  TestLog &Free(uint64_t address, size_t thread = 0) {
    EXPECT_TRUE(heaplog_append_free(streams_[thread], Next(), address, 0));
    return *this;
  }
  TestLog &Resize(uint64_t address, uint64_t size_bytes, size_t thread = 0) {
    EXPECT_TRUE(heaplog_append_resize(streams_[thread], Next(), address,
                                      size_bytes, size_bytes, 0));
    return *this;
  }
  TestLog &Lost(uint64_t count) {
    EXPECT_TRUE(heaplog_append_lost(streams_[0], Next(), count));
    return *this;
  }
  const std::string &path() const {
    return path_;
  }

 private:
  uint64_t Next() {
    return heaplog_test::kStartNs + ++time_ns_;
  }

  const std::string path_;
  heaplog_writer_t *writer_ = nullptr;
  std::vector<heaplog_stream_t *> streams_;
  uint64_t time_ns_ = 0;
};

}  // namespace leakcheck

#endif  // MY_ALLOC_LEAKCHECK_REPLAY_TESTING_H_
