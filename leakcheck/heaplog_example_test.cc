// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Holds docs/heaplog.md to its word: the worked example there is, byte by byte,
// the log that this test writes.

#include <unistd.h>

#include <cstdint>
#include <map>
#include <sstream>
#include <string>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/heaplog_writer.h"

namespace {

using heaplog_test::Log;
using heaplog_test::ReadFile;
using heaplog_test::ReadLog;
using heaplog_test::TempPath;

std::string WriteExample() {
  static std::string path = TempPath("example.heaplog");
  const uint64_t start_ns = 5000000000;
  heaplog_writer_options_t options = {};
  options.path = path.c_str();
  options.start_monotonic_ns = start_ns;
  options.start_unix_ns = 1600000000000000000;
  options.pid = 4711;
  options.page_bytes = 4096;
  heaplog_writer_t *writer = nullptr;
  heaplog_stream_t *stream = nullptr;
  EXPECT_EQ(heaplog_writer_open(&options, &writer), 0);
  EXPECT_EQ(heaplog_stream_open(writer, start_ns, 4711, "main", &stream), 0);
  EXPECT_TRUE(heaplog_append_stack(stream, 1, 0, 0x401136));
  EXPECT_TRUE(
      heaplog_append_alloc(stream, start_ns + 1000, 0x10010, 100, 112, 1));
  EXPECT_TRUE(
      heaplog_append_alloc(stream, start_ns + 1300, 0x10080, 100, 112, 1));
  EXPECT_TRUE(heaplog_append_free(stream, start_ns + 2000, 0x10010, 0));
  EXPECT_TRUE(heaplog_append_end(stream, start_ns + 2500));
  heaplog_writer_close(writer);
  return path;
}

// The bytes that the page shows: lines of "offset: byte byte ...   comment".
std::map<uint64_t, unsigned> DocumentedBytes() {
  std::map<uint64_t, unsigned> bytes;
  std::istringstream page(ReadFile("docs/heaplog.md"));
  std::string line;
  bool in_example = false;
  while (std::getline(page, line)) {
    in_example |= line == "## A worked example";
    size_t colon = line.find(": ");
    if (!in_example || colon != 4 ||
        line.find_first_not_of("0123456789abcdef") != 4) {
      continue;
    }
    uint64_t offset = std::stoull(line.substr(0, 4), nullptr, 16);
    // Up to the gap of three spaces.
    std::istringstream fields(line.substr(6, line.find("   ") - 6));
    std::string field;
    while (fields >> field) {
      EXPECT_EQ(field.size(), 2u) << line;
      EXPECT_TRUE(
          bytes.emplace(offset++, std::stoul(field, nullptr, 16)).second)
          << line;
    }
  }
  return bytes;
}

TEST(HeaplogExampleTest, DocumentationShowsWhatTheWriterWrites) {
  std::string path = WriteExample();
  std::string file = ReadFile(path);
  std::map<uint64_t, unsigned> documented = DocumentedBytes();
  EXPECT_GT(documented.size(), 150u);
  for (const auto &[offset, byte] : documented) {
    ASSERT_LT(offset, file.size());
    EXPECT_EQ(static_cast<unsigned char>(file[offset]), byte)
        << std::hex << "at " << offset;
  }
  for (uint64_t offset = 0; offset < file.size(); offset++) {
    EXPECT_TRUE(file[offset] == 0 || documented.count(offset) > 0)
        << std::hex << "not documented: " << offset;
  }
  unlink(path.c_str());
}

TEST(HeaplogExampleTest, ReaderReadsWhatTheTextSays) {
  std::string path = WriteExample();
  Log log = ReadLog(path);
  EXPECT_EQ(log.status, 0);
  ASSERT_EQ(log.events.size(), 4u);
  EXPECT_EQ(log.events[1].time_ns, 1300u);
  EXPECT_EQ(log.events[1].address, 0x10080u);
  EXPECT_EQ(log.events[1].usable_bytes, 112u);
  EXPECT_EQ(log.events[1].stack_id, 1u);
  EXPECT_EQ(log.events[2].address, 0x10010u);
  EXPECT_EQ(log.stacks[1].second, 0x401136u);
  unlink(path.c_str());
}

}  // namespace
