// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The writer on a healthy system, its output read by the reader.

#include "leakcheck/heaplog_writer.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"

namespace {

using heaplog_test::kStartNs;
using heaplog_test::Log;
using heaplog_test::Options;
using heaplog_test::ReadFile;
using heaplog_test::ReadLog;
using heaplog_test::Same;
using heaplog_test::TempPath;
using heaplog_test::ToString;
using heaplog_test::WriteFile;

class HeaplogWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(heaplog_writer_open(&options_, &writer_), 0);
  }

  void TearDown() override {
    heaplog_writer_close(writer_);
    unlink(path_.c_str());
  }

  heaplog_stream_t *OpenStream(const char *name = "main") {
    heaplog_stream_t *stream = nullptr;
    EXPECT_EQ(heaplog_stream_open(writer_, kStartNs, 77, name, &stream), 0);
    return stream;
  }

  std::string path_ = TempPath("writer.heaplog");
  heaplog_writer_options_t options_ = Options(path_);
  heaplog_writer_t *writer_ = nullptr;
};

TEST_F(HeaplogWriterTest, EmptyLogIsValid) {
  Log log = ReadLog(path_);
  EXPECT_EQ(log.open_status, 0);
  EXPECT_EQ(log.status, 0);
  EXPECT_TRUE(log.events.empty());
  EXPECT_TRUE(log.threads.empty());
  EXPECT_FALSE(log.info.clean_end);
  EXPECT_EQ(log.info.pid, 4711u);
  EXPECT_EQ(log.info.page_bytes, 4096u);
  EXPECT_EQ(log.info.start_monotonic_ns, kStartNs);
  EXPECT_EQ(log.info.start_unix_ns, 1600000000000000000u);
  EXPECT_EQ(log.info.version_major, 1u);
  EXPECT_EQ(log.info.lost_count, 0u);
  EXPECT_EQ(log.executable, "");
}

TEST_F(HeaplogWriterTest, NullIsANoOp) {
  heaplog_writer_close(nullptr);
  heaplog_writer_forget(nullptr);
  heaplog_stream_close(nullptr, 0);
}

TEST_F(HeaplogWriterTest, FileIsForItsOwnerOnly) {
  struct stat stat;
  ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 0777, 0600u);
}

TEST_F(HeaplogWriterTest, BadOptionsAreRefused) {
  heaplog_writer_t *writer = nullptr;
  for (uint64_t page_bytes : {0u, 1u, 2048u, 4097u, 12288u, 131072u}) {
    heaplog_writer_options_t options = Options(TempPath("bad"));
    options.page_bytes = page_bytes;
    EXPECT_EQ(heaplog_writer_open(&options, &writer), -EINVAL) << page_bytes;
    EXPECT_NE(access(options.path, F_OK), 0);
  }
  heaplog_writer_options_t options = Options(TempPath("bad"));
  options.path = nullptr;
  EXPECT_EQ(heaplog_writer_open(&options, &writer), -EINVAL);
  options.path = "";
  EXPECT_EQ(heaplog_writer_open(&options, &writer), -EINVAL);
  std::string too_long(5000, 'x');
  options.path = too_long.c_str();
  EXPECT_EQ(heaplog_writer_open(&options, &writer), -ENAMETOOLONG);
  options.path = "/nonexistent/folder/x.heaplog";
  EXPECT_EQ(heaplog_writer_open(&options, &writer), -ENOENT);
  options.path = "/dev/null";
  EXPECT_EQ(heaplog_writer_open(&options, &writer), -EINVAL);
  options.path = "/tmp";
  EXPECT_EQ(heaplog_writer_open(&options, &writer), -EINVAL);
  EXPECT_EQ(writer, nullptr);
}

TEST_F(HeaplogWriterTest, EveryPageSizeGivesAReadableLog) {
  for (uint64_t page_bytes = 4096; page_bytes <= 65536; page_bytes *= 2) {
    heaplog_writer_options_t options = Options(TempPath("page"));
    options.page_bytes = page_bytes;
    heaplog_writer_t *writer = nullptr;
    ASSERT_EQ(heaplog_writer_open(&options, &writer), 0);
    heaplog_stream_t *stream = nullptr;
    ASSERT_EQ(heaplog_stream_open(writer, kStartNs, 1, nullptr, &stream), 0);
    EXPECT_TRUE(heaplog_append_free(stream, kStartNs, 16, 0));
    heaplog_writer_close(writer);
    Log log = ReadLog(options.path);
    EXPECT_EQ(log.status, 0);
    EXPECT_EQ(log.events.size(), 1u);
    EXPECT_EQ(ReadFile(options.path).size(), page_bytes + 65536);
    unlink(options.path);
  }
}

TEST_F(HeaplogWriterTest, OlderLogIsReplacedAndItsWriterGoesOn) {
  heaplog_stream_t *old_stream = OpenStream();
  ASSERT_TRUE(heaplog_append_free(old_stream, kStartNs, 16, 0));
  heaplog_writer_t *second = nullptr;
  ASSERT_EQ(heaplog_writer_open(&options_, &second), 0);
  // Its file has no name any more, and stays whole.
  for (int i = 0; i < 100000; i++) {
    ASSERT_TRUE(heaplog_append_free(old_stream, kStartNs + i, 16, 0));
  }
  EXPECT_EQ(heaplog_writer_error(writer_), 0);
  EXPECT_TRUE(ReadLog(path_).events.empty());
  heaplog_writer_close(second);
}

TEST_F(HeaplogWriterTest, EmptyFileIsReplaced) {
  std::string path = TempPath("empty");
  WriteFile(path, "");
  heaplog_writer_options_t options = Options(path);
  heaplog_writer_t *writer = nullptr;
  ASSERT_EQ(heaplog_writer_open(&options, &writer), 0);
  heaplog_writer_close(writer);
  EXPECT_EQ(ReadLog(path).open_status, 0);
  unlink(path.c_str());
}

TEST_F(HeaplogWriterTest, SomebodyElsesFileIsLeftAlone) {
  std::string path = TempPath("precious");
  for (const char *content : {"x", "precious, and longer than a magic"}) {
    WriteFile(path, content);
    heaplog_writer_options_t options = Options(path);
    heaplog_writer_t *writer = nullptr;
    EXPECT_EQ(heaplog_writer_open(&options, &writer), -EEXIST);
    EXPECT_EQ(ReadFile(path), content);
  }
  unlink(path.c_str());
}

TEST_F(HeaplogWriterTest, RelativePathStaysWhereItWasWhenTheDirectoryChanges) {
  char old_directory[4096];
  ASSERT_NE(getcwd(old_directory, sizeof(old_directory)), nullptr);
  ASSERT_EQ(chdir(::testing::TempDir().c_str()), 0);
  heaplog_writer_options_t options = Options("relative.heaplog");
  heaplog_writer_t *writer = nullptr;
  ASSERT_EQ(heaplog_writer_open(&options, &writer), 0);
  std::string path = ::testing::TempDir() + "/relative.heaplog";
  ASSERT_EQ(chdir("/"), 0);
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  heaplog_writer_close(writer);
  unlink(path.c_str());
  ASSERT_EQ(chdir(old_directory), 0);
}

TEST_F(HeaplogWriterTest, EveryKindOfEventRoundTrips) {
  heaplog_stream_t *stream = OpenStream();
  uint64_t t = kStartNs;
  EXPECT_TRUE(heaplog_append_alloc(stream, t + 1, 0x1000, 100, 112, 5));
  EXPECT_TRUE(heaplog_append_resize(stream, t + 2, 0x1000, 60, 64, 6));
  EXPECT_TRUE(heaplog_append_free(stream, t + 3, 0x1000, 0));
  EXPECT_TRUE(heaplog_append_free(stream, t + 4, 0x1008, 7));
  EXPECT_TRUE(heaplog_append_map(stream, t + 5, 0x10000, 65536));
  EXPECT_TRUE(heaplog_append_unmap(stream, t + 6, 0x10000, 65536));
  EXPECT_TRUE(heaplog_append_sample(stream, t + 7, 123456789));
  EXPECT_TRUE(heaplog_append_lost(stream, t + 8, 42));
  EXPECT_TRUE(heaplog_append_end(stream, t + 9));
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  const std::vector<heaplog_event_t> expected = {
      {1, 0x1000, 100, 112, 5, 0, HEAPLOG_ALLOC, 0},
      {2, 0x1000, 60, 64, 6, 0, HEAPLOG_RESIZE, 0},
      {3, 0x1000, 0, 0, 0, 0, HEAPLOG_FREE, 0},
      {4, 0x1008, 0, 0, 7, 0, HEAPLOG_FREE, 0},
      {5, 0x10000, 65536, 0, 0, 0, HEAPLOG_MAP, 0},
      {6, 0x10000, 65536, 0, 0, 0, HEAPLOG_UNMAP, 0},
      {7, 0, 123456789, 0, 0, 0, HEAPLOG_SAMPLE, 0},
      {8, 0, 42, 0, 0, 0, HEAPLOG_LOST, 0},
      {9, 0, 0, 0, 0, 0, HEAPLOG_END, 0},
  };
  ASSERT_EQ(log.events.size(), expected.size());
  for (size_t i = 0; i < expected.size(); i++) {
    EXPECT_EQ(ToString(log.events[i]), ToString(expected[i]));
  }
  EXPECT_TRUE(log.info.clean_end);
  EXPECT_EQ(log.info.lost_count, 42u);
  EXPECT_EQ(heaplog_writer_lost_count(writer_), 42u);
}

TEST_F(HeaplogWriterTest, ExtremeValuesRoundTrip) {
  heaplog_stream_t *stream = OpenStream();
  const uint64_t top = ~uint64_t{0};
  std::vector<heaplog_event_t> expected;
  auto alloc = [&](uint64_t time, uint64_t address, uint64_t size,
                   uint64_t usable, uint32_t stack) {
    EXPECT_TRUE(heaplog_append_alloc(stream, kStartNs + time, address, size,
                                     usable, stack));
    expected.push_back(
        {time, address, size, usable, stack, 0, HEAPLOG_ALLOC, 0});
  };
  alloc(0, 0, 0, 0, 0);
  alloc(0, 1, 0, 1, HEAPLOG_STACK_ID_MAX);
  alloc(0, top, 0, 0, 0);
  alloc(1, 0, top, top, 1);
  alloc(1, 0, 0, top, 1);
  alloc(top - kStartNs - 1, top / 2, top / 2, top / 2 + 1, 1);
  alloc(top - kStartNs, 0, 1, 1, 1);
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  ASSERT_EQ(log.events.size(), expected.size());
  for (size_t i = 0; i < expected.size(); i++) {
    EXPECT_EQ(ToString(log.events[i]), ToString(expected[i]));
  }
}

TEST_F(HeaplogWriterTest, ImpossibleArgumentsAreRefusedAndCounted) {
  heaplog_stream_t *stream = OpenStream();
  const uint64_t top = ~uint64_t{0};
  EXPECT_FALSE(heaplog_append_alloc(stream, kStartNs, 16, 17, 16, 0));
  EXPECT_FALSE(heaplog_append_alloc(stream, kStartNs, top, 1, 1, 0));
  EXPECT_FALSE(heaplog_append_resize(stream, kStartNs, 16, 0, top, 0));
  EXPECT_FALSE(heaplog_append_alloc(stream, kStartNs, 16, 1, 1,
                                    HEAPLOG_STACK_ID_MAX + 1));
  EXPECT_FALSE(
      heaplog_append_free(stream, kStartNs, 16, HEAPLOG_STACK_ID_MAX + 1));
  EXPECT_FALSE(heaplog_append_map(stream, kStartNs, 16, top));
  EXPECT_FALSE(heaplog_append_unmap(stream, kStartNs, top, 1));
  EXPECT_EQ(heaplog_writer_lost_count(writer_), 7u);
  EXPECT_TRUE(heaplog_append_free(stream, kStartNs, 16, 0));
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  ASSERT_EQ(log.events.size(), 2u);
  EXPECT_EQ(log.events[0].kind, HEAPLOG_LOST);
  EXPECT_EQ(log.events[0].size_bytes, 7u);
  EXPECT_EQ(log.events[1].kind, HEAPLOG_FREE);
}

TEST_F(HeaplogWriterTest, TimesThatGoBackAreRaised) {
  heaplog_stream_t *stream = OpenStream();
  EXPECT_TRUE(heaplog_append_free(stream, kStartNs - 500, 16, 0));
  EXPECT_TRUE(heaplog_append_free(stream, kStartNs + 100, 32, 0));
  EXPECT_TRUE(heaplog_append_free(stream, kStartNs + 50, 48, 0));
  EXPECT_TRUE(heaplog_append_map(stream, 0, 48, 1));
  Log log = ReadLog(path_);
  ASSERT_EQ(log.events.size(), 4u);
  EXPECT_EQ(log.events[0].time_ns, 0u);
  EXPECT_EQ(log.events[1].time_ns, 100u);
  EXPECT_EQ(log.events[2].time_ns, 100u);
  EXPECT_EQ(log.events[3].time_ns, 100u);
}

TEST_F(HeaplogWriterTest, DefinitionsRoundTrip) {
  heaplog_stream_t *stream = OpenStream("a-name-longer-than-fifteen");
  EXPECT_TRUE(heaplog_append_process(stream, "/bin/true", "true\0-x\0", 8));
  heaplog_module_t module = {};
  module.id = 9;
  module.start_address = 0x400000;
  module.end_address = 0x500000;
  module.load_bias = 0x300000;
  module.load_time_ns = kStartNs + 5;
  module.path = "/lib/libx.so";
  module.build_id_bytes = 20;
  std::memset(module.build_id, 0xab, sizeof(module.build_id));
  EXPECT_TRUE(heaplog_append_module_load(stream, &module));
  module.id = 10;
  module.build_id_bytes = 0;
  module.path = "";
  EXPECT_TRUE(heaplog_append_module_load(stream, &module));
  EXPECT_TRUE(heaplog_append_module_unload(stream, kStartNs + 7, 9));
  EXPECT_TRUE(heaplog_append_stack(stream, 1, 0, 0x401000));
  EXPECT_TRUE(heaplog_append_stack(stream, 5, 1, ~uint64_t{0}));
  EXPECT_TRUE(heaplog_append_stack(stream, 2, 1, 0));
  EXPECT_TRUE(heaplog_append_stack(stream, 2, 1, 0));
  EXPECT_TRUE(heaplog_append_stack(stream, HEAPLOG_STACK_ID_MAX, 5, 3));
  heaplog_stream_close(stream, kStartNs + 20);
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.executable, "/bin/true");
  EXPECT_EQ(log.command_line, std::string("true\0-x\0", 8));
  ASSERT_EQ(log.modules.size(), 2u);
  EXPECT_EQ(log.modules[0].path, "/lib/libx.so");
  EXPECT_EQ(log.modules[0].module.id, 9u);
  EXPECT_EQ(log.modules[0].module.start_address, 0x400000u);
  EXPECT_EQ(log.modules[0].module.end_address, 0x500000u);
  EXPECT_EQ(log.modules[0].module.load_bias, 0x300000u);
  EXPECT_EQ(log.modules[0].module.load_time_ns, 5u);
  EXPECT_EQ(log.modules[0].module.unload_time_ns, 7u);
  EXPECT_EQ(log.modules[0].module.build_id_bytes, 20u);
  EXPECT_EQ(log.modules[0].module.build_id[19], 0xab);
  EXPECT_EQ(log.modules[0].module.build_id[20], 0);
  EXPECT_EQ(log.modules[1].path, "");
  EXPECT_EQ(log.modules[1].module.unload_time_ns, ~uint64_t{0});
  const std::map<uint32_t, std::pair<uint32_t, uint64_t>> stacks = {
      {1, {0, 0x401000}},
      {2, {1, 0}},
      {5, {1, ~uint64_t{0}}},
      {HEAPLOG_STACK_ID_MAX, {5, 3}}};
  EXPECT_EQ(log.stacks, stacks);
  ASSERT_EQ(log.threads.size(), 1u);
  EXPECT_EQ(log.threads[0].tid, 77u);
  EXPECT_EQ(log.threads[0].start_time_ns, 0u);
  EXPECT_EQ(log.threads[0].end_time_ns, 20u);
  EXPECT_STREQ(log.threads[0].name, "a-name-longer-t");
}

TEST_F(HeaplogWriterTest, ImpossibleDefinitionsAreRefused) {
  heaplog_stream_t *stream = OpenStream();
  EXPECT_FALSE(heaplog_append_stack(stream, 0, 0, 1));
  EXPECT_FALSE(heaplog_append_stack(stream, 3, 3, 1));
  EXPECT_FALSE(heaplog_append_stack(stream, 3, 4, 1));
  EXPECT_FALSE(heaplog_append_stack(stream, HEAPLOG_STACK_ID_MAX + 1, 0, 1));
  heaplog_module_t module = {};
  module.path = "x";
  module.start_address = 1;
  EXPECT_FALSE(heaplog_append_module_load(stream, &module));
  module.end_address = 2;
  module.build_id_bytes = HEAPLOG_BUILD_ID_BYTES_MAX + 1;
  EXPECT_FALSE(heaplog_append_module_load(stream, &module));
  EXPECT_EQ(heaplog_writer_lost_count(writer_), 0u);
  EXPECT_EQ(ReadLog(path_).status, 0);
}

TEST_F(HeaplogWriterTest, LongStringsAreCut) {
  heaplog_stream_t *stream = OpenStream();
  std::string path(HEAPLOG_PATH_BYTES_MAX + 10, 'p');
  std::string command(HEAPLOG_COMMAND_LINE_BYTES_MAX + 10, 'c');
  for (uint32_t id = 0; id < 50; id++) {
    heaplog_module_t module = {};
    module.id = id;
    module.path = path.c_str();
    EXPECT_TRUE(heaplog_append_module_load(stream, &module));
  }
  EXPECT_TRUE(heaplog_append_process(stream, path.c_str(), command.data(),
                                     command.size()));
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.modules.size(), 50u);
  EXPECT_EQ(log.modules[49].path, path.substr(0, HEAPLOG_PATH_BYTES_MAX));
  EXPECT_EQ(log.executable, path.substr(0, HEAPLOG_PATH_BYTES_MAX));
  EXPECT_EQ(log.command_line,
            command.substr(0, HEAPLOG_COMMAND_LINE_BYTES_MAX));
}

// Record lengths around those where the length field grows.
TEST_F(HeaplogWriterTest, EveryPathLengthRoundTrips) {
  heaplog_stream_t *stream = OpenStream();
  for (uint32_t length = 0; length < 400; length++) {
    heaplog_module_t module = {};
    std::string path(length, 'x');
    module.id = length;
    module.path = path.c_str();
    EXPECT_TRUE(heaplog_append_module_load(stream, &module));
    EXPECT_TRUE(heaplog_append_free(stream, kStartNs, length, 0));
  }
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.events.size(), 400u);
  ASSERT_EQ(log.modules.size(), 400u);
  for (uint32_t length = 0; length < 400; length++) {
    EXPECT_EQ(log.modules[length].path.size(), length);
  }
}

TEST_F(HeaplogWriterTest, EventsOverManyChunksRoundTrip) {
  heaplog_stream_t *stream = OpenStream();
  std::mt19937_64 random(7);
  std::vector<heaplog_event_t> expected;
  uint64_t time = 0;
  for (uint32_t i = 0; i < 200000; i++) {
    heaplog_event_t event = {};
    event.time_ns = time += random() >> (random() % 30 + 34);
    event.address = random() >> (random() % 48 + 2);
    event.stack_id = random() % 3 == 0 ? i % 1000 : 17;
    if (random() % 3 == 0) {
      event.kind = HEAPLOG_FREE;
      ASSERT_TRUE(heaplog_append_free(stream, kStartNs + time, event.address,
                                      event.stack_id));
    } else {
      event.kind = random() % 4 == 0 ? HEAPLOG_RESIZE : HEAPLOG_ALLOC;
      event.size_bytes = random() >> (random() % 40 + 20);
      event.usable_bytes = event.size_bytes + random() % 3 * 8;
      ASSERT_TRUE((event.kind == HEAPLOG_ALLOC ? heaplog_append_alloc
                                               : heaplog_append_resize)(
          stream, kStartNs + time, event.address, event.size_bytes,
          event.usable_bytes, event.stack_id));
    }
    expected.push_back(event);
  }
  for (size_t batch : {1u, 7u, 1000u, 300000u}) {
    Log log = ReadLog(path_, batch);
    EXPECT_EQ(log.status, 0);
    ASSERT_EQ(log.events.size(), expected.size());
    for (size_t i = 0; i < expected.size(); i++) {
      ASSERT_TRUE(Same(log.events[i], expected[i]))
          << i << ": " << ToString(log.events[i]) << " not "
          << ToString(expected[i]);
    }
  }
}

TEST_F(HeaplogWriterTest, ErrnoIsKept) {
  errno = 4242;
  heaplog_stream_t *stream = OpenStream();
  for (int i = 0; i < 100000; i++) {
    ASSERT_TRUE(heaplog_append_alloc(stream, kStartNs + i, i * 48, 32, 48, i));
  }
  heaplog_stream_close(stream, kStartNs);
  heaplog_writer_t *writer = nullptr;
  heaplog_writer_options_t options = Options("/nonexistent/folder/x");
  EXPECT_EQ(heaplog_writer_open(&options, &writer), -ENOENT);
  EXPECT_EQ(errno, 4242);
}

// What was appended is in the file at once, not at close.
TEST_F(HeaplogWriterTest, LogCanBeReadWhileItIsWritten) {
  heaplog_stream_t *stream = OpenStream();
  for (uint32_t i = 1; i <= 300; i++) {
    ASSERT_TRUE(heaplog_append_free(stream, kStartNs + i, i, 0));
    Log log = ReadLog(path_);
    ASSERT_EQ(log.status, 0);
    ASSERT_EQ(log.events.size(), i);
    ASSERT_EQ(log.events.back().address, i);
  }
}

}  // namespace
