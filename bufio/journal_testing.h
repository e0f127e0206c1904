// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of notes share: files of several names.

#ifndef MY_ALLOC_BUFIO_JOURNAL_TESTING_H_
#define MY_ALLOC_BUFIO_JOURNAL_TESTING_H_

#include <unistd.h>

#include <functional>
#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/io_system.h"
#include "bufio/writer.h"
#include "bufio/writer_testing.h"
#include "gtest/gtest.h"

namespace bufio_testing {

inline constexpr const char *kNoNotes =
    "the file system of the scratch folder has no extended attributes";

class JournalNoteTest : public WriterOpenTest {
 protected:
  void SetUp() override {
    if (!HasNotes()) {
      GTEST_SKIP() << kNoNotes;
    }
  }
  ~JournalNoteTest() override {
    bufio_system = &bufio_system_kernel;
  }

  int OpenOther(const bufio_writer_options_t &options) {
    return bufio_writer_open(&writer_, other_.c_str(), &options);
  }

  // The same file.
  void LinkOther() {
    ASSERT_EQ(link(path_.c_str(), other_.c_str()), 0);
  }

  std::string other_side_ = other_ + ".bufio-journal";
};

// Calls `function` with each level, for emptying and appending.
inline void ForEachWay(
    const std::function<void(bufio_writer_options_t)> &function) {
  for (int level = 0; level < 4; level++) {
    for (bool append : {false, true}) {
      bufio_writer_options_t options = {};
      options.durability = static_cast<bufio_durability_t>(level);
      options.append = append;
      SCOPED_TRACE(testing::Message()
                   << "level " << level << ", append " << append);
      function(options);
    }
  }
}

class WithoutNotesTest : public WriterOpenTest {};

}  // namespace bufio_testing

#endif  // MY_ALLOC_BUFIO_JOURNAL_TESTING_H_
