// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/journal_internal.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::Exists;
using bufio_testing::FaultyKernel;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::Seed;
using bufio_testing::TempPath;
using bufio_testing::WriteFile;

constexpr size_t kRing = 8192;

class JournalTest : public testing::Test {
 protected:
  ~JournalTest() override {
    unlink(path_.c_str());
    unlink(side_.c_str());
  }

  // A file of `size` bytes, and a side file as a writer leaves it that handed
  // over `written` and accepted `committed`.
  void Make(uint64_t size, uint64_t written, uint64_t committed,
            uint64_t direct_end = 0) {
    WriteFile(path_, Pattern(0, size));
    struct stat stat = {};
    ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
    header_ = {};
    header_.magic = BUFIO_JOURNAL_MAGIC;
    header_.version = BUFIO_JOURNAL_VERSION;
    header_.header_bytes = BUFIO_JOURNAL_HEADER_BYTES;
    header_.ring_bytes = kRing;
    header_.device = stat.st_dev;
    header_.inode = stat.st_ino;
    header_.nonce = 12345;
    header_.birth = Birth();
    header_.check = bufio_journal_header_check(&header_);
    header_.committed = committed;
    header_.written = bufio_journal_word(&header_, written);
    header_.direct_end =
        direct_end == 0 ? 0 : bufio_journal_word(&header_, direct_end);
    ring_ = std::string(kRing, '?');
    for (uint64_t at = written; at < committed && at < written + kRing; at++) {
      ring_[at % kRing] = Pattern(at, 1)[0];
    }
    Store();
  }

  uint64_t Birth() {
    int descriptor = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    uint64_t birth = 0;
    EXPECT_EQ(bufio_system_kernel.birth(descriptor, &birth), 0);
    close(descriptor);
    return birth;
  }

  void Store() {
    std::string bytes(BUFIO_JOURNAL_HEADER_BYTES, '\0');
    memcpy(&bytes[0], &header_, sizeof(header_));
    WriteFile(side_, bytes + ring_);
  }

  int Replay() {
    result_ = {};
    return bufio_journal_replay(path_.c_str(), nullptr, &result_);
  }

  // The replay refuses, and touches nothing.
  void ExpectRefusal() {
    std::string file = ReadFile(path_);
    std::string side = ReadFile(side_);
    EXPECT_EQ(Replay(), -EPROTO);
    EXPECT_EQ(ReadFile(path_), file);
    EXPECT_EQ(ReadFile(side_), side);
  }

  std::string path_ = TempPath("journal");
  std::string side_ = path_ + ".bufio-journal";
  bufio_journal_header_t header_ = {};
  std::string ring_;
  bufio_journal_result_t result_ = {};
};

TEST_F(JournalTest, NoSideFileIsNothingToDo) {
  WriteFile(path_, "text");
  EXPECT_EQ(Replay(), 0);
  EXPECT_EQ(ReadFile(path_), "text");
}

TEST_F(JournalTest, MissingFileSaysSo) {
  EXPECT_EQ(Replay(), -ENOENT);
}

TEST_F(JournalTest, CommittedBytesAreAppendedAndTheSideFileGoes) {
  Make(10000, 10000, 15000);
  EXPECT_EQ(Replay(), 0);
  EXPECT_EQ(result_.appended_bytes, 5000u);
  EXPECT_EQ(ReadFile(path_), Pattern(0, 15000));
  EXPECT_FALSE(Exists(side_));
  EXPECT_EQ(Replay(), 0);
  EXPECT_EQ(ReadFile(path_), Pattern(0, 15000));
}

TEST_F(JournalTest, BytesThatTheKernelHadAlreadyAreNotRepeated) {
  for (uint64_t size : {10000, 10001, 12345, 18191, 18192}) {
    Make(size, 10000, 18192);
    EXPECT_EQ(Replay(), 0);
    EXPECT_EQ(result_.appended_bytes, 18192 - size);
    EXPECT_EQ(ReadFile(path_), Pattern(0, 18192));
  }
}

TEST_F(JournalTest, UnfinishedDirectRecordIsCut) {
  Make(17000, 10000, 10000, 20000);
  EXPECT_EQ(Replay(), 0);
  EXPECT_EQ(result_.removed_bytes, 7000u);
  EXPECT_EQ(ReadFile(path_), Pattern(0, 10000));
}

TEST_F(JournalTest, FinishedDirectRecordIsKept) {
  // Accepted by `written`; the other words were not yet brought up to date.
  Make(20000, 20000, 10000, 20000);
  EXPECT_EQ(Replay(), 0);
  EXPECT_EQ(ReadFile(path_), Pattern(0, 20000));
}

TEST_F(JournalTest, SideFileOfAMakerThatDiedEarlyIsRemoved) {
  WriteFile(path_, "text");
  for (size_t size : {size_t{0}, size_t{100}, size_t{4096}, 4096 + kRing}) {
    WriteFile(side_, std::string(size, '\0'));
    EXPECT_EQ(Replay(), 0);
    EXPECT_FALSE(Exists(side_));
  }
  Make(4, 4, 4);
  header_.magic = 0;
  ring_.assign(kRing, '\0');
  Store();
  EXPECT_EQ(Replay(), 0);
  EXPECT_FALSE(Exists(side_));
}

TEST_F(JournalTest, FileThatOnlyBeginsWithZerosIsNotRemoved) {
  WriteFile(path_, "text");
  for (size_t zeros : {size_t{100}, size_t{4096}, size_t{100000}}) {
    WriteFile(side_, std::string(zeros, '\0') + "x");
    ExpectRefusal();
  }
}

TEST_F(JournalTest, LivingWriterIsLeftAlone) {
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_PROCESS;
  bufio_writer_t writer;
  ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_puts(&writer, "text"), 0);
  EXPECT_EQ(Replay(), -EBUSY);
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  EXPECT_EQ(ReadFile(path_), "text");
}

TEST_F(JournalTest, KilledParentWhoseChildLivesIsReplayed) {
  int pipe_ends[2];
  int ready_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  ASSERT_EQ(pipe(ready_ends), 0);
  pid_t child = fork();
  if (child == 0) {
    bufio_writer_options_t options = {};
    options.durability = BUFIO_DURABILITY_PROCESS;
    bufio_writer_t writer;
    if (bufio_writer_open(&writer, path_.c_str(), &options) != 0 ||
        bufio_writer_puts(&writer, "text") != 0) {
      _exit(1);
    }
    if (fork() == 0) {
      // Outlives its parent until told. It has let go of the lock by now.
      char byte = 0;
      (void)!write(ready_ends[1], &byte, 1);
      close(pipe_ends[1]);
      _exit(static_cast<int>(read(pipe_ends[0], &byte, 1)));
    }
    char byte;
    (void)!read(ready_ends[0], &byte, 1);
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(Replay(), 0);
  EXPECT_EQ(ReadFile(path_), "text");
  close(pipe_ends[1]);
  close(pipe_ends[0]);
  close(ready_ends[0]);
  close(ready_ends[1]);
}

// ---- hostile side files ----

TEST_F(JournalTest, AnyFlippedBitOfTheHeaderLosesNothing) {
  for (size_t bit = 0; bit < 8 * sizeof(header_); bit++) {
    Make(12000, 10000, 15000, 0);
    reinterpret_cast<unsigned char *>(&header_)[bit / 8] ^= 1u << bit % 8;
    Store();
    int status = Replay();
    std::string file = ReadFile(path_);
    EXPECT_EQ(file.substr(0, 12000), Pattern(0, 12000)) << bit;
    EXPECT_LE(file.size(), 10000 + kRing) << bit;
    if (status == 0) {
      // Padding, or `committed`, which has no room for a check: it may only
      // differ in how much of the ring is appended.
      size_t byte = bit / 8;
      EXPECT_TRUE((byte >= 64 && byte < 128) || byte >= 144) << byte;
    } else {
      EXPECT_EQ(status, -EPROTO);
      EXPECT_EQ(file.size(), 12000u);
      EXPECT_TRUE(Exists(side_));
    }
  }
}

TEST_F(JournalTest, SideFileOfAnotherFileIsRefused) {
  Make(100, 100, 200);
  header_.inode += 12345678;
  header_.check = bufio_journal_header_check(&header_);
  Store();
  ExpectRefusal();
  Make(100, 100, 200);
  header_.device++;
  header_.check = bufio_journal_header_check(&header_);
  Store();
  ExpectRefusal();
}

TEST_F(JournalTest, SideFileOfAnEarlierFileOfTheSameInodeIsRefused) {
  Make(100, 100, 200);
  header_.birth++;
  header_.check = bufio_journal_header_check(&header_);
  Store();
  ExpectRefusal();
}

TEST_F(JournalTest, FilesOfOneInodeAreToldApart) {
  // Where the file system reuses inodes at once and has generations or births.
  for (int i = 0; i < 50; i++) {
    Make(100, 100, 200);
    uint64_t inode = header_.inode;
    uint64_t birth = header_.birth;
    unlink(path_.c_str());
    WriteFile(path_, Pattern(0, 100));
    struct stat stat = {};
    ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
    if (stat.st_ino != inode || birth == 0) {
      continue;
    }
    EXPECT_NE(Birth(), birth);
    ExpectRefusal();
  }
}

TEST_F(JournalTest, FileThatLostBytesIsRefused) {
  Make(10000, 10000, 15000);
  ASSERT_EQ(truncate(path_.c_str(), 9999), 0);
  ExpectRefusal();
}

TEST_F(JournalTest, FileThatSomebodyElseAppendedToIsRefused) {
  Make(15001, 10000, 15000);
  ExpectRefusal();
  Make(10000, 10000, 15000);
  WriteFile(path_, Pattern(0, 10000) + "somebody else's");
  struct stat stat = {};
  ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
  header_.inode = stat.st_ino;
  header_.check = bufio_journal_header_check(&header_);
  Store();
  ExpectRefusal();
}

TEST_F(JournalTest, NumbersOutOfRangeAreRefused) {
  Make(10000, 10000, 10000 + kRing + 1);
  ExpectRefusal();
  Make(10000, 10000, UINT64_MAX);
  ExpectRefusal();
  Make(20001, 10000, 10000, 20000);
  ExpectRefusal();
  Make(17000, 10000, 15000, 20000);
  ExpectRefusal();
  Make(10000, 10000, 15000);
  header_.ring_bytes = 0;
  header_.check = bufio_journal_header_check(&header_);
  Store();
  ExpectRefusal();
}

TEST_F(JournalTest, SideFileOfAnotherLengthIsRefused) {
  Make(10000, 10000, 15000);
  ring_.pop_back();
  Store();
  ExpectRefusal();
  ring_ += "xx";
  Store();
  ExpectRefusal();
  ASSERT_EQ(truncate(side_.c_str(), 60), 0);
  ExpectRefusal();
}

TEST_F(JournalTest, SideFileThatIsNoFileIsRefused) {
  WriteFile(path_, "text");
  ASSERT_EQ(symlink("/etc/passwd", side_.c_str()), 0);
  EXPECT_EQ(Replay(), -ELOOP);
  unlink(side_.c_str());
  ASSERT_EQ(mkfifo(side_.c_str(), 0600), 0);
  EXPECT_LT(Replay(), 0);
  EXPECT_EQ(ReadFile(path_), "text");
}

// ---- a kernel that fails ----

TEST_F(JournalTest, EveryCallOfAReplayMayFailAndTheNextOneFinishes) {
  for (int error : {EIO, ENOSPC, EMFILE}) {
    for (uint64_t failing = 1;; failing++) {
      Make(12000, 10000, 18192);
      Call failed = Call::kOpen;
      uint64_t calls;
      {
        FaultyKernel kernel;
        kernel.decide = [&](Call call, size_t len) -> int64_t {
          if (kernel.calls() == failing) {
            failed = call;
            return -error;
          }
          return len > 3 ? static_cast<int64_t>(len / 3) : 0;
        };
        int status = Replay();
        calls = kernel.calls();
        if (status != 0 || calls < failing) {
          EXPECT_EQ(status, calls < failing ? 0 : -error) << NameOf(failed);
        }
      }
      std::string file = ReadFile(path_);
      EXPECT_EQ(file, Pattern(0, file.size()));
      EXPECT_GE(file.size(), 12000u);
      EXPECT_EQ(Replay(), 0);
      EXPECT_EQ(ReadFile(path_), Pattern(0, 18192));
      if (calls < failing) {
        break;
      }
    }
  }
}

TEST_F(JournalTest, FileSystemWithoutAllocateGetsZerosWritten) {
  FaultyKernel kernel;
  kernel.decide = [](Call call, size_t) -> int64_t {
    return call == Call::kAllocate ? -EOPNOTSUPP : 0;
  };
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_PROCESS;
  bufio_writer_t writer;
  ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_puts(&writer, "text"), 0);
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  EXPECT_EQ(ReadFile(path_), "text");
}

}  // namespace
