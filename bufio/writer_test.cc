// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <random>
#include <string>
#include <vector>

#include "bufio/bufio_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::Exists;
using bufio_testing::FaultyKernel;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::Seed;
using bufio_testing::TempPath;
using bufio_testing::ToString;
using bufio_testing::WriteFile;

#define EXPECT_SOUND(writer) EXPECT_STREQ(bufio_writer_check(writer), nullptr)

class WriterTest : public testing::Test {
 protected:
  ~WriterTest() override {
    bufio_writer_close(&writer_);
    unlink(path_.c_str());
    unlink((path_ + ".bufio-journal").c_str());
  }

  void Open() {
    ASSERT_EQ(bufio_writer_open(&writer_, path_.c_str(), &options_), 0);
    EXPECT_SOUND(&writer_);
  }

  std::string path_ = TempPath("writer");
  bufio_writer_options_t options_ = {};
  bufio_writer_t writer_ = {};
};

// Each test of this one runs at every level.
class WriterLevelTest : public WriterTest,
                        public testing::WithParamInterface<bufio_durability_t> {
 protected:
  WriterLevelTest() {
    options_.durability = GetParam();
  }
};

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

// ---- errors ----

TEST_P(WriterLevelTest, EveryErrorIsStickyAndKeepsExactlyWhatWasNotTaken) {
  const Call kWrites[] = {Call::kWrite, Call::kWriteAt};
  for (int error : bufio_testing::PlausibleErrors(Call::kWrite)) {
    if (error == EINTR || error == EAGAIN) {
      continue;
    }
    for (size_t taken : {0, 1, 500, 999}) {
      Open();
      std::string text = Pattern(0, 1000);
      ASSERT_EQ(bufio_writer_write(&writer_, text.data(), text.size()), 0);
      {
        FaultyKernel kernel;
        bool is_first = taken != 0;
        kernel.decide = [&](Call call, size_t) -> int64_t {
          if (call != kWrites[0] && call != kWrites[1]) {
            return 0;
          }
          bool was_first = is_first;
          is_first = false;
          return was_first ? static_cast<int64_t>(taken) : -error;
        };
        EXPECT_EQ(bufio_writer_flush(&writer_), -error);
        uint64_t calls = kernel.calls();
        EXPECT_EQ(bufio_writer_error(&writer_), -error);
        EXPECT_EQ(ToString(bufio_writer_unwritten(&writer_)),
                  text.substr(taken));
        // Sticky, and nothing more is accepted or tried.
        EXPECT_EQ(bufio_writer_putc(&writer_, 'x'), -error);
        EXPECT_EQ(bufio_writer_write(&writer_, "xx", 2), -error);
        EXPECT_EQ(bufio_writer_printf(&writer_, "x"), -error);
        EXPECT_EQ(bufio_writer_reserve(&writer_, 1), nullptr);
        EXPECT_EQ(bufio_writer_flush(&writer_), -error);
        EXPECT_EQ(bufio_writer_sync(&writer_), -error);
        bufio_putter_t putter = bufio_putter_begin(&writer_);
        bufio_putter_putc(&putter, 'x');
        EXPECT_EQ(bufio_putter_end(&putter), -error);
        EXPECT_EQ(kernel.calls(), calls);
        EXPECT_EQ(bufio_writer_tell(&writer_), 1000u);
        // The cause is still there.
        EXPECT_EQ(bufio_writer_resume(&writer_), -error);
        EXPECT_SOUND(&writer_);
      }
      EXPECT_EQ(ReadFile(path_), text.substr(0, taken));
      EXPECT_EQ(bufio_writer_resume(&writer_), 0);
      EXPECT_EQ(ReadFile(path_), text);
      EXPECT_EQ(bufio_writer_puts(&writer_, "more"), 0);
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
      EXPECT_EQ(ReadFile(path_), text + "more");
    }
  }
}

TEST_P(WriterLevelTest, CloseReturnsTheStickyError) {
  Open();
  EXPECT_EQ(bufio_writer_puts(&writer_, "text"), 0);
  FaultyKernel kernel;
  kernel.decide = [](Call call, size_t) -> int64_t {
    return call == Call::kWrite || call == Call::kWriteAt ? -ENOSPC : 0;
  };
  EXPECT_EQ(bufio_writer_flush(&writer_), -ENOSPC);
  EXPECT_EQ(bufio_writer_close(&writer_), -ENOSPC);
}

TEST_P(WriterLevelTest, CloseReturnsWhatCloseReturned) {
  Open();
  FaultyKernel kernel;
  int target = writer_.descriptor;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    return call == Call::kClose && writer_.journal == nullptr ? -EDQUOT : 0;
  };
  if (GetParam() == BUFIO_DURABILITY_PROCESS) {
    GTEST_SKIP() << "closes two descriptors";
  }
  EXPECT_EQ(bufio_writer_close(&writer_), -EDQUOT);
  EXPECT_EQ(fcntl(target, F_GETFD), -1);
}

TEST_P(WriterLevelTest, WriteThatTakesNothingIsAnError) {
  Open();
  EXPECT_EQ(bufio_writer_puts(&writer_, "text"), 0);
  bufio_system_t table = bufio_system_kernel;
  table.write = [](int, const void *, size_t) -> int64_t {
    return 0;
  };
  table.write_at = [](int, const void *, size_t, uint64_t) -> int64_t {
    return 0;
  };
  bufio_system = &table;
  EXPECT_EQ(bufio_writer_flush(&writer_), -EIO);
  bufio_system = &bufio_system_kernel;
  EXPECT_EQ(bufio_writer_resume(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "text");
}

TEST_P(WriterLevelTest, FailedSyncIsFinal) {
  for (int error : {EIO, ENOSPC, EDQUOT}) {
    Open();
    EXPECT_EQ(bufio_writer_puts(&writer_, "text"), 0);
    FaultyKernel kernel;
    kernel.decide = [&](Call call, size_t) -> int64_t {
      return call == Call::kSyncData && kernel.count(call) == 1 ? -error : 0;
    };
    EXPECT_EQ(bufio_writer_sync(&writer_), -error);
    // The kernel would say 0 now.
    EXPECT_EQ(bufio_writer_sync(&writer_), -error);
    EXPECT_EQ(bufio_writer_resume(&writer_), -error);
    EXPECT_EQ(bufio_writer_puts(&writer_, "x"), -error);
    EXPECT_EQ(bufio_writer_close(&writer_), -error);
    EXPECT_EQ(kernel.count(Call::kSyncData), 1u);
  }
}

TEST_F(WriterTest, SyncPolicyOfRecords) {
  options_.durability = BUFIO_DURABILITY_POWER;
  options_.sync_records = 10;
  Open();
  FaultyKernel kernel;
  for (int i = 0; i < 100; i++) {
    ASSERT_EQ(bufio_writer_puts(&writer_, "record"), 0);
    ASSERT_EQ(kernel.count(Call::kSyncData), static_cast<uint64_t>(i + 1) / 10);
  }
}

TEST_F(WriterTest, SyncPolicyOfBytesAndOfTime) {
  options_.durability = BUFIO_DURABILITY_POWER;
  options_.sync_bytes = 1000;
  Open();
  FaultyKernel kernel;
  for (int i = 0; i < 100; i++) {
    ASSERT_EQ(bufio_writer_write(&writer_, Pattern(0, 100).data(), 100), 0);
  }
  EXPECT_EQ(kernel.count(Call::kSyncData), 10u);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  options_.sync_bytes = 0;
  options_.sync_interval_ms = 1;
  ASSERT_EQ(bufio_writer_open(&writer_, path_.c_str(), &options_), 0);
  uint64_t before = kernel.count(Call::kSyncData);
  while (kernel.count(Call::kSyncData) < before + 3) {
    ASSERT_EQ(bufio_writer_puts(&writer_, "x"), 0);
  }
}

TEST_F(WriterTest, WouldBlockIsReturnedNotStickyAndLosesNothing) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_NONBLOCK), 0);
  options_.return_would_block = true;
  options_.buffer_bytes = 4096;
  ASSERT_EQ(bufio_writer_attach(&writer_, ends[1], &options_), 0);
  std::string expected;
  std::string got;
  std::mt19937_64 random(Seed());
  int refusals = 0;
  while (expected.size() < (1 << 20)) {
    std::string record = Pattern(expected.size(), 1 + random() % 9000);
    uint64_t before = bufio_writer_tell(&writer_);
    int status = bufio_writer_write(&writer_, record.data(), record.size());
    expected += record.substr(0, bufio_writer_tell(&writer_) - before);
    ASSERT_EQ(bufio_writer_error(&writer_), 0);
    EXPECT_SOUND(&writer_);
    if (status == -EAGAIN) {
      refusals++;
      std::string piece(1 + random() % 70000, '\0');
      ssize_t count = read(ends[0], &piece[0], piece.size());
      ASSERT_GT(count, 0);
      got += piece.substr(0, static_cast<size_t>(count));
    } else {
      ASSERT_EQ(status, 0);
    }
  }
  EXPECT_GT(refusals, 3);
  while (got.size() < expected.size()) {
    (void)bufio_writer_flush(&writer_);
    std::string piece(100000, '\0');
    ssize_t count = read(ends[0], &piece[0], piece.size());
    ASSERT_GT(count, 0);
    got += piece.substr(0, static_cast<size_t>(count));
  }
  EXPECT_EQ(got, expected);
  close(ends[0]);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  close(ends[1]);
}

TEST_F(WriterTest, AcceptedLineIsNotRefusedForAFullPipe) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_NONBLOCK), 0);
  std::string fill(4096, 'f');
  size_t filled = 0;
  while (write(ends[1], fill.data(), fill.size()) > 0) {
    filled += fill.size();
  }
  options_.line_buffered = true;
  options_.return_would_block = true;
  ASSERT_EQ(bufio_writer_attach(&writer_, ends[1], &options_), 0);
  EXPECT_EQ(bufio_writer_puts(&writer_, "one\n"), 0);
  EXPECT_EQ(bufio_writer_puts(&writer_, "two\n"), 0);
  EXPECT_EQ(bufio_writer_flush(&writer_), -EAGAIN);
  std::string got(filled + 100, '\0');
  EXPECT_EQ(read(ends[0], &got[0], got.size()), static_cast<ssize_t>(filled));
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(read(ends[0], &got[0], got.size()), 8);
  EXPECT_EQ(got.substr(0, 8), "one\ntwo\n");
  close(ends[0]);
  close(ends[1]);
}

TEST_F(WriterTest, SyncOfThePolicyReportsThoughTheRecordIsAccepted) {
  options_.durability = BUFIO_DURABILITY_POWER;
  options_.sync_records = 1;
  Open();
  FaultyKernel kernel;
  kernel.decide = [](Call call, size_t) -> int64_t {
    return call == Call::kWrite ? -ENOSPC : 0;
  };
  EXPECT_EQ(bufio_writer_puts(&writer_, "text"), -ENOSPC);
  EXPECT_EQ(bufio_writer_tell(&writer_), 4u);
  EXPECT_EQ(bufio_writer_error(&writer_), -ENOSPC);
  kernel.decide = nullptr;
  EXPECT_EQ(bufio_writer_resume(&writer_), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "text");
}

TEST_F(WriterTest, BrokenPipeIsAnErrorLikeOthers) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  auto before = signal(SIGPIPE, SIG_IGN);
  ASSERT_EQ(bufio_writer_attach(&writer_, ends[1], nullptr), 0);
  close(ends[0]);
  EXPECT_EQ(bufio_writer_puts(&writer_, "text"), 0);
  EXPECT_EQ(bufio_writer_flush(&writer_), -EPIPE);
  EXPECT_EQ(ToString(bufio_writer_unwritten(&writer_)), "text");
  EXPECT_EQ(bufio_writer_close(&writer_), -EPIPE);
  signal(SIGPIPE, before);
  close(ends[1]);
}

TEST_F(WriterTest, FullDiskOfTheKernelItself) {
  int descriptor = open("/dev/full", O_WRONLY);
  if (descriptor < 0) {
    GTEST_SKIP() << "no /dev/full";
  }
  ASSERT_EQ(bufio_writer_attach(&writer_, descriptor, nullptr), 0);
  EXPECT_EQ(bufio_writer_puts(&writer_, "text"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), -ENOSPC);
  close(descriptor);
}

// Each call of an open may fail with each errno; nothing is left behind, and
// the file is as it was.
TEST_P(WriterLevelTest, EveryCallOfOpenMayFail) {
  options_.append = true;
  for (int error : {EIO, ENOSPC, ENOMEM, EMFILE}) {
    for (uint64_t failing = 1;; failing++) {
      WriteFile(path_, "old");
      Call failed = Call::kOpen;
      FaultyKernel kernel;
      kernel.decide = [&](Call call, size_t) -> int64_t {
        if (kernel.calls() == failing) {
          failed = call;
          return -error;
        }
        return 0;
      };
      int lowest = dup(0);
      close(lowest);
      int status = bufio_writer_open(&writer_, path_.c_str(), &options_);
      bool all_done = kernel.calls() < failing;
      kernel.decide = nullptr;
      if (status == 0) {
        // Or it failed where that does not matter.
        EXPECT_EQ(bufio_writer_close(&writer_), 0);
      } else {
        EXPECT_EQ(status, -error) << NameOf(failed) << " " << failing;
        EXPECT_EQ(writer_.buffer, nullptr);
      }
      EXPECT_EQ(ReadFile(path_), "old");
      EXPECT_FALSE(Exists(path_ + ".bufio-journal")) << NameOf(failed);
      int again = dup(0);
      close(again);
      EXPECT_EQ(again, lowest) << "a descriptor leaked";
      if (all_done) {
        EXPECT_EQ(status, 0);
        break;
      }
    }
  }
}

// ---- model ----

// Random operations under a kernel that fails and falls short at random; what
// the file has and what is kept are the accepted bytes, always.
class WriterModelTest : public WriterTest,
                        public testing::WithParamInterface<int> {
 protected:
  void Step() {
    uint64_t before = bufio_writer_tell(&writer_);
    ASSERT_EQ(before, accepted_.size());
    size_t len = random_() % 10 == 0  ? random_() % 40000
                 : random_() % 3 == 0 ? random_() % 5000
                                      : random_() % 120;
    std::string bytes = Pattern(accepted_.size(), len);
    int status = 0;
    switch (random_() % 9) {
      case 0:
        len = 1;
        bytes = Pattern(accepted_.size(), 1);
        status =
            bufio_writer_putc(&writer_, static_cast<unsigned char>(bytes[0]));
        break;
      case 1: {
        unsigned char *room = bufio_writer_reserve(&writer_, len);
        if (room == nullptr) {
          status = -1;
          break;
        }
        memcpy(room, bytes.data(), len);
        status = bufio_writer_commit(&writer_, len);
        break;
      }
      case 2: {
        size_t cut = len == 0 ? 0 : random_() % len;
        struct iovec parts[3] = {
            {&bytes[0], cut}, {nullptr, 0}, {&bytes[0] + cut, len - cut}};
        status = bufio_writer_write_vector(&writer_, parts, 3);
        break;
      }
      case 3: {
        bufio_putter_t putter = bufio_putter_begin(&writer_);
        for (char byte : bytes) {
          bufio_putter_putc(&putter, static_cast<unsigned char>(byte));
        }
        status = bufio_putter_end(&putter);
        // Byte by byte: a prefix may have been accepted.
        accepted_ += bytes.substr(0, bufio_writer_tell(&writer_) - before);
        return;
      }
      case 4:
        status = bufio_writer_flush(&writer_);
        bytes.clear();
        break;
      default:
        status = bufio_writer_write(&writer_, bytes.data(), len);
        break;
    }
    size_t taken = bufio_writer_tell(&writer_) - before;
    if (status == 0) {
      ASSERT_EQ(taken, bytes.size());
    } else if (HasPolicy() && taken == bytes.size()) {
      // Accepted, but its sync failed.
    } else if (bytes.size() <= writer_.capacity_bytes ||
               options_.durability == BUFIO_DURABILITY_PROCESS) {
      ASSERT_EQ(taken, 0u) << status;
    }
    accepted_ += bytes.substr(0, taken);
  }

  bool HasPolicy() const {
    return options_.sync_records != 0 || options_.sync_bytes != 0;
  }

  void CheckEverything() {
    ASSERT_STREQ(bufio_writer_check(&writer_), nullptr);
    // What was compared once is not read again, but its length counts.
    struct stat stat = {};
    ASSERT_EQ(fstat(writer_.descriptor, &stat), 0);
    auto size = static_cast<uint64_t>(stat.st_size);
    if (options_.durability == BUFIO_DURABILITY_PROCESS &&
        size > writer_.written) {
      // The tail of a record that was not accepted.
      ASSERT_NE(bufio_writer_error(&writer_), 0);
      size = writer_.written;
    }
    ASSERT_EQ(size, writer_.written);
    std::string fresh(size - compared_, '\0');
    int descriptor = open(path_.c_str(), O_RDONLY);
    ASSERT_EQ(pread(descriptor, &fresh[0], fresh.size(),
                    static_cast<off_t>(compared_)),
              static_cast<ssize_t>(fresh.size()));
    close(descriptor);
    fresh += ToString(bufio_writer_unwritten(&writer_));
    ASSERT_TRUE(accepted_.compare(compared_, std::string::npos, fresh) == 0);
    compared_ = size;
  }

  std::mt19937_64 random_{Seed() * 100 + static_cast<uint64_t>(GetParam())};
  std::string accepted_;
  uint64_t compared_ = 0;
};

TEST_P(WriterModelTest, FileAndBufferAreTheAcceptedBytes) {
  SCOPED_TRACE(testing::Message() << "BUFIO_TEST_SEED=" << Seed());
  options_.durability = static_cast<bufio_durability_t>(GetParam() % 4);
  options_.buffer_bytes = random_() % 2 == 0 ? 4096 : 16384;
  options_.line_buffered = random_() % 4 == 0;
  options_.return_would_block = random_() % 4 == 0;
  if (options_.durability == BUFIO_DURABILITY_POWER && GetParam() >= 20) {
    options_.sync_records = random_() % 2 * (1 + random_() % 30);
    options_.sync_bytes = 1 + random_() % 20000;
  }
  unsigned char memory[999];
  if (options_.durability != BUFIO_DURABILITY_PROCESS && random_() % 3 == 0) {
    options_.memory = memory;
    options_.memory_bytes = 16 + random_() % 983;
  }
  Open();
  FaultyKernel kernel;
  unsigned one_in = 3 + static_cast<unsigned>(random_() % 20);
  bool is_cured = false;
  // Of the last seeds a sync fails at some time, which is final.
  uint64_t failing_sync = GetParam() >= 40 ? 1 + random_() % 20 : 0;
  kernel.decide = [&](Call call, size_t len) -> int64_t {
    if (call == Call::kSyncData && kernel.count(call) == failing_sync) {
      return -EIO;
    }
    if (is_cured || len == 0) {
      return !is_cured && call == Call::kTruncate && random_() % 4 == 0 ? -EIO
                                                                        : 0;
    }
    const std::vector<int> &errors = bufio_testing::PlausibleErrors(call);
    if (random_() % one_in == 0) {
      return -errors[random_() % errors.size()];
    }
    return random_() % 2 == 0 ? static_cast<int64_t>(1 + random_() % len) : 0;
  };
  for (int step = 0; step < 1500 && !HasFatalFailure(); step++) {
    Step();
    if (step % 8 == 0) {
      CheckEverything();
    }
    if (bufio_writer_error(&writer_) != 0 && random_() % 3 == 0) {
      (void)!bufio_writer_resume(&writer_);
    }
  }
  is_cured = true;
  if (writer_.error_is_final) {
    EXPECT_EQ(kernel.count(Call::kSyncData), failing_sync);
    CheckEverything();
    EXPECT_EQ(bufio_writer_resume(&writer_), -EIO);
    EXPECT_EQ(bufio_writer_close(&writer_), -EIO);
    EXPECT_EQ(kernel.count(Call::kSyncData), failing_sync);
    return;
  }
  EXPECT_EQ(bufio_writer_resume(&writer_), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_TRUE(ReadFile(path_) == accepted_);
}

INSTANTIATE_TEST_SUITE_P(Seeds, WriterModelTest, testing::Range(0, 64));

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
