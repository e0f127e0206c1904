// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The writer over a kernel that refuses bytes or takes some of them.

#include "bufio/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

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
using bufio_testing::NameOf;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::Seed;
using bufio_testing::ToString;
using bufio_testing::WriteFile;
using bufio_testing::WriterLevelTest;
using bufio_testing::WriterTest;

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

INSTANTIATE_TEST_SUITE_P(Levels, WriterLevelTest,
                         testing::Values(BUFIO_DURABILITY_NONE,
                                         BUFIO_DURABILITY_EXIT,
                                         BUFIO_DURABILITY_PROCESS,
                                         BUFIO_DURABILITY_POWER));

}  // namespace
