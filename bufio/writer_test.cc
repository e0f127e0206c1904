// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bufio/bufio_testing.h"
#include "bufio/writer_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::Exists;
using bufio_testing::FaultyKernel;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::Seed;
using bufio_testing::WriteFile;
using bufio_testing::WriterLevelTest;
using bufio_testing::WriterTest;

// ---- lifecycle ----

TEST_P(WriterLevelTest, NothingWrittenIsAnEmptyFile) {
  Open();
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_TRUE(Exists(path_));
  EXPECT_FALSE(Exists(path_ + ".bufio-journal"));
  EXPECT_EQ(ReadFile(path_), "");
}

TEST_P(WriterLevelTest, OpenEmptiesUnlessAppending) {
  WriteFile(path_, "old");
  Open();
  EXPECT_EQ(bufio_writer_puts(&writer_, "new"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "new");
  options_.append = true;
  Open();
  EXPECT_EQ(bufio_writer_tell(&writer_), 3u);
  EXPECT_EQ(bufio_writer_puts(&writer_, "er"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "newer");
}

TEST_P(WriterLevelTest, ExclusiveRefusesAFileThatExists) {
  options_.exclusive = true;
  Open();
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(bufio_writer_open(&writer_, path_.c_str(), &options_), -EEXIST);
}

TEST_P(WriterLevelTest, OpenInMissingFolderSaysSo) {
  EXPECT_EQ(bufio_writer_open(&writer_, "/no/such/file", &options_), -ENOENT);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
}

TEST_P(WriterLevelTest, ModeIsThatOfANewFile) {
  options_.mode = 0640;
  mode_t mask = umask(0);
  Open();
  umask(mask);
  struct stat stat = {};
  ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 07777, 0640u);
}

TEST_P(WriterLevelTest, CallsOnAClosedWriterFail) {
  Open();
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(bufio_writer_putc(&writer_, 'x'), -EBADF);
  EXPECT_EQ(bufio_writer_write(&writer_, "x", 1), -EBADF);
  EXPECT_EQ(bufio_writer_printf(&writer_, "x"), -EBADF);
  EXPECT_EQ(bufio_writer_reserve(&writer_, 1), nullptr);
  EXPECT_EQ(bufio_writer_flush(&writer_), -EBADF);
  EXPECT_EQ(bufio_writer_sync(&writer_), -EBADF);
  EXPECT_EQ(bufio_writer_resume(&writer_), -EBADF);
  EXPECT_SOUND(&writer_);
}

TEST_F(WriterTest, OptionsThatMakeNoSenseAreRefused) {
  char memory[64];
  options_.memory = memory;
  options_.memory_bytes = BUFIO_WRITER_MEMORY_MIN - 1;
  EXPECT_EQ(bufio_writer_open(&writer_, path_.c_str(), &options_), -EINVAL);
  options_.memory_bytes = sizeof(memory);
  options_.durability = BUFIO_DURABILITY_PROCESS;
  EXPECT_EQ(bufio_writer_open(&writer_, path_.c_str(), &options_), -EINVAL);
  options_ = {};
  options_.sync_records = 1;
  EXPECT_EQ(bufio_writer_open(&writer_, path_.c_str(), &options_), -EINVAL);
  options_ = {};
  options_.durability = static_cast<bufio_durability_t>(17);
  EXPECT_EQ(bufio_writer_open(&writer_, path_.c_str(), &options_), -EINVAL);
  EXPECT_EQ(bufio_writer_attach(&writer_, -1, nullptr), -EBADF);
  EXPECT_EQ(bufio_writer_attach(&writer_, 9999, nullptr), -EBADF);
  EXPECT_FALSE(Exists(path_));
}

TEST_F(WriterTest, AttachAtLevelProcessNeedsAReadableFileAndAName) {
  options_.durability = BUFIO_DURABILITY_PROCESS;
  int descriptor = open(path_.c_str(), O_RDWR | O_CREAT, 0600);
  EXPECT_EQ(bufio_writer_attach(&writer_, descriptor, &options_), -EINVAL);
  std::string journal = path_ + ".bufio-journal";
  options_.journal_path = journal.c_str();
  int appending = open(path_.c_str(), O_RDWR | O_APPEND);
  EXPECT_EQ(bufio_writer_attach(&writer_, appending, &options_), -EINVAL);
  close(appending);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(bufio_writer_attach(&writer_, ends[1], &options_), -EINVAL);
  close(ends[0]);
  close(ends[1]);
  ASSERT_EQ(bufio_writer_attach(&writer_, descriptor, &options_), 0);
  EXPECT_EQ(bufio_writer_puts(&writer_, "x"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "x");
  close(descriptor);
}

TEST_F(WriterTest, SecondWriterOfLevelProcessIsRefused) {
  options_.durability = BUFIO_DURABILITY_PROCESS;
  Open();
  EXPECT_EQ(bufio_writer_puts(&writer_, "first"), 0);
  bufio_writer_t second;
  EXPECT_EQ(bufio_writer_open(&second, path_.c_str(), &options_), -EBUSY);
  options_.append = true;
  EXPECT_EQ(bufio_writer_open(&second, path_.c_str(), &options_), -EBUSY);
  options_.durability = BUFIO_DURABILITY_NONE;
  EXPECT_EQ(bufio_writer_open(&second, path_.c_str(), &options_), -EBUSY);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "first");
}

// ---- writing ----

TEST_P(WriterLevelTest, EveryLengthOfRecordIsCopiedExactly) {
  Open();
  std::string expected;
  for (size_t len = 0; len <= 300; len++) {
    std::string record = Pattern(expected.size(), len);
    ASSERT_EQ(bufio_writer_write(&writer_, record.data(), len), 0);
    expected += record;
    ASSERT_EQ(bufio_writer_tell(&writer_), expected.size());
    EXPECT_SOUND(&writer_);
  }
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_P(WriterLevelTest, BytesAcrossManyBuffers) {
  options_.buffer_bytes = 4096;
  Open();
  std::string expected = Pattern(0, 50000);
  for (char byte : expected) {
    ASSERT_EQ(bufio_writer_putc(&writer_, static_cast<unsigned char>(byte)), 0);
  }
  EXPECT_EQ(bufio_writer_flush(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_P(WriterLevelTest, PutterAcrossManyBuffers) {
  options_.buffer_bytes = 4096;
  Open();
  std::string expected = Pattern(0, 50000);
  bufio_putter_t putter = bufio_putter_begin(&writer_);
  for (char byte : expected) {
    bufio_putter_putc(&putter, static_cast<unsigned char>(byte));
  }
  EXPECT_EQ(bufio_putter_end(&putter), 0);
  EXPECT_SOUND(&writer_);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_P(WriterLevelTest, RecordsLargerThanTheBuffer) {
  options_.buffer_bytes = 8192;
  Open();
  std::string expected;
  for (size_t len : {8192, 8193, 100000, 1, 12288, 12289, 5, 40000, 8191}) {
    std::string record = Pattern(expected.size(), len);
    ASSERT_EQ(bufio_writer_write(&writer_, record.data(), len), 0);
    expected += record;
    EXPECT_EQ(bufio_writer_tell(&writer_), expected.size());
    EXPECT_SOUND(&writer_);
  }
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_P(WriterLevelTest, ReserveAndCommit) {
  options_.buffer_bytes = 4096;
  Open();
  std::string expected;
  for (int i = 0; i < 3000; i++) {
    unsigned char *room = bufio_writer_reserve(&writer_, 100);
    ASSERT_NE(room, nullptr);
    size_t len = static_cast<size_t>(i) % 101;
    std::string bytes = Pattern(expected.size(), 100);
    memcpy(room, bytes.data(), 100);
    ASSERT_EQ(bufio_writer_commit(&writer_, len), 0);
    expected += bytes.substr(0, len);
    EXPECT_SOUND(&writer_);
  }
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_P(WriterLevelTest, ReserveOfMoreThanTheBufferIsRefusedWithoutAnError) {
  Open();
  EXPECT_EQ(bufio_writer_reserve(&writer_, 1 << 20), nullptr);
  EXPECT_EQ(bufio_writer_reserve(&writer_, SIZE_MAX), nullptr);
  EXPECT_EQ(bufio_writer_error(&writer_), 0);
  EXPECT_EQ(bufio_writer_commit(&writer_, 1 << 20), -EINVAL);
  EXPECT_EQ(bufio_writer_tell(&writer_), 0u);
}

TEST_P(WriterLevelTest, VectorsSmallAndLarge) {
  options_.buffer_bytes = 4096;
  Open();
  std::string expected;
  std::mt19937_64 random(Seed());
  for (int round = 0; round < 200; round++) {
    std::vector<std::string> parts;
    std::vector<struct iovec> vector;
    size_t scale = round % 3 == 0 ? 3000 : 100;
    for (size_t i = 0; i < random() % 40; i++) {
      parts.push_back(Pattern(random(), random() % scale));
    }
    for (std::string &part : parts) {
      vector.push_back({&part[0], part.size()});
      expected += part;
    }
    ASSERT_EQ(bufio_writer_write_vector(&writer_, vector.data(),
                                        static_cast<int>(vector.size())),
              0);
    EXPECT_SOUND(&writer_);
  }
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_F(WriterTest, VectorWhoseLengthsOverflowIsRefused) {
  Open();
  char byte = 0;
  struct iovec parts[2] = {{&byte, SIZE_MAX}, {&byte, 1}};
  EXPECT_EQ(bufio_writer_write_vector(&writer_, parts, 2), -EINVAL);
}

TEST_P(WriterLevelTest, PrintfOfAnyLength) {
  options_.buffer_bytes = 4096;
  Open();
  std::string expected;
  for (size_t len : {1, 4000, 4095, 4096, 4097, 100, 8192, 50000, 3, 4090}) {
    std::string text(len, 'p');
    ASSERT_EQ(bufio_writer_printf(&writer_, "<%s %d>", text.c_str(), 42), 0);
    expected += "<" + text + " 42>";
    EXPECT_SOUND(&writer_);
  }
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_F(WriterTest, CallersMemoryIsUsed) {
  unsigned char memory[100];
  options_.memory = memory;
  options_.memory_bytes = sizeof(memory);
  Open();
  std::string expected;
  for (size_t len = 0; len <= 250; len++) {
    std::string record = Pattern(expected.size(), len);
    ASSERT_EQ(bufio_writer_write(&writer_, record.data(), len), 0);
    expected += record;
    EXPECT_GE(writer_.cursor, memory);
    EXPECT_LE(writer_.cursor, memory + sizeof(memory));
    EXPECT_SOUND(&writer_);
  }
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_F(WriterTest, FullBuffersGoToPageBoundariesInCallsOfTheirSize) {
  FaultyKernel kernel;
  std::vector<size_t> lengths;
  kernel.decide = [&](Call call, size_t len) -> int64_t {
    if (call == Call::kWrite) {
      lengths.push_back(len);
    }
    return 0;
  };
  Open();
  std::string record = Pattern(0, 77);
  for (int i = 0; i < 20000; i++) {
    ASSERT_EQ(bufio_writer_write(&writer_, record.data(), record.size()), 0);
  }
  EXPECT_EQ(lengths, std::vector<size_t>(11, 131072));
}

TEST_F(WriterTest, LineBufferedFlushesAtLineFeeds) {
  options_.line_buffered = true;
  Open();
  EXPECT_EQ(bufio_writer_puts(&writer_, "hal"), 0);
  EXPECT_EQ(ReadFile(path_), "");
  EXPECT_EQ(bufio_writer_puts(&writer_, "f\nrest"), 0);
  EXPECT_EQ(ReadFile(path_), "half\nrest");
  EXPECT_EQ(bufio_writer_putc(&writer_, 'x'), 0);
  EXPECT_EQ(ReadFile(path_), "half\nrest");
  EXPECT_EQ(bufio_writer_putc(&writer_, '\n'), 0);
  EXPECT_EQ(ReadFile(path_), "half\nrestx\n");
  EXPECT_EQ(bufio_writer_printf(&writer_, "%d\n", 7), 0);
  EXPECT_EQ(ReadFile(path_), "half\nrestx\n7\n");
}

TEST_F(WriterTest, AppendersShareAFile) {
  options_.append = true;
  Open();
  bufio_writer_t second;
  ASSERT_EQ(bufio_writer_open(&second, path_.c_str(), &options_), 0);
  EXPECT_EQ(bufio_writer_puts(&writer_, "one\n"), 0);
  EXPECT_EQ(bufio_writer_puts(&second, "two\n"), 0);
  EXPECT_EQ(bufio_writer_flush(&second), 0);
  EXPECT_EQ(bufio_writer_flush(&writer_), 0);
  EXPECT_EQ(bufio_writer_puts(&second, "three\n"), 0);
  EXPECT_EQ(bufio_writer_close(&second), 0);
  EXPECT_EQ(ReadFile(path_), "two\none\nthree\n");
}

// ---- fork ----

// Runs `body` in a child; returns its exit status.
template <typename Body>
int InChild(Body body) {
  pid_t child = fork();
  if (child == 0) {
    _exit(body());
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_P(WriterLevelTest, ChildDoesNotWriteItsParentsBytes) {
  Open();
  EXPECT_EQ(bufio_writer_puts(&writer_, "parent\n"), 0);
  int status = InChild([&] { return bufio_writer_close(&writer_) != 0; });
  EXPECT_EQ(status, GetParam() == BUFIO_DURABILITY_PROCESS ? 1 : 0);
  EXPECT_EQ(ReadFile(path_), "");
  EXPECT_EQ(bufio_writer_puts(&writer_, "again\n"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "parent\nagain\n");
}

TEST_P(WriterLevelTest, ChildMayWriteBytesOfItsOwnButForLevelProcess) {
  Open();
  EXPECT_EQ(bufio_writer_puts(&writer_, "parent\n"), 0);
  int expected = GetParam() == BUFIO_DURABILITY_PROCESS ? -ECHILD : 0;
  int status = InChild([&] {
    EXPECT_EQ(bufio_writer_puts(&writer_, "child\n"), expected);
    EXPECT_EQ(bufio_writer_putc(&writer_, '!'), expected);
    EXPECT_EQ(bufio_writer_flush(&writer_), expected);
    EXPECT_EQ(bufio_writer_close(&writer_), expected);
    return testing::Test::HasFailure() ? 1 : 0;
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), expected == 0 ? "child\n!parent\n" : "parent\n");
}

TEST_P(WriterLevelTest, ChildDoesNotSyncWhatItSharesWithItsParent) {
  Open();
  int status = InChild([&] {
    FaultyKernel kernel;
    EXPECT_EQ(bufio_writer_sync(&writer_), -ECHILD);
    (void)bufio_writer_puts(&writer_, "child");
    EXPECT_EQ(bufio_writer_sync(&writer_), -ECHILD);
    (void)bufio_writer_close(&writer_);
    EXPECT_EQ(kernel.count(Call::kSyncData), 0u);
    return testing::Test::HasFailure() ? 1 : 0;
  });
  EXPECT_EQ(status, 0);
}

INSTANTIATE_TEST_SUITE_P(Levels, WriterLevelTest,
                         testing::Values(BUFIO_DURABILITY_NONE,
                                         BUFIO_DURABILITY_EXIT,
                                         BUFIO_DURABILITY_PROCESS,
                                         BUFIO_DURABILITY_POWER));

}  // namespace
