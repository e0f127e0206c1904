// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of the reader share.

#ifndef MY_ALLOC_BUFIO_READER_TESTING_H_
#define MY_ALLOC_BUFIO_READER_TESTING_H_

#include <unistd.h>

#include <string>
#include <vector>

#include "bufio/bufio_testing.h"
#include "bufio/reader.h"
#include "gtest/gtest.h"

#define EXPECT_SOUND(reader) EXPECT_STREQ(bufio_reader_check(reader), nullptr)

namespace bufio_testing {

class ReaderTest : public testing::Test {
 protected:
  ~ReaderTest() override {
    bufio_reader_close(&reader_);
    unlink(path_.c_str());
  }

  void Open(const std::string &text) {
    WriteFile(path_, text);
    ASSERT_EQ(bufio_reader_open(&reader_, path_.c_str(), &options_), 0);
    EXPECT_SOUND(&reader_);
  }

  std::vector<std::string> Lines() {
    std::vector<std::string> lines;
    bufio_slice_t line;
    int status;
    while ((status = bufio_reader_next_line(&reader_, &line)) > 0) {
      lines.push_back(ToString(line));
    }
    EXPECT_EQ(status, 0);
    return lines;
  }

  std::string path_ = TempPath("reader");
  bufio_reader_options_t options_ = {};
  bufio_reader_t reader_ = {};
};

inline std::vector<std::string> Split(const std::string &text, char delimiter,
                                      bool strip_cr) {
  std::vector<std::string> pieces;
  size_t start = 0;
  while (start < text.size()) {
    size_t stop = text.find(delimiter, start);
    if (stop == std::string::npos) {
      pieces.push_back(text.substr(start));
      break;
    }
    size_t end = stop;
    if (strip_cr && end > start && text[end - 1] == '\r') {
      end--;
    }
    pieces.push_back(text.substr(start, end - start));
    start = stop + 1;
  }
  return pieces;
}

}  // namespace bufio_testing

#endif  // MY_ALLOC_BUFIO_READER_TESTING_H_
