// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What an open does to files: those of living writers, of killed ones, of
// strangers, and those it may only write to.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bufio/bufio_testing.h"
#include "bufio/journal.h"
#include "bufio/writer.h"
#include "bufio/writer_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::Exists;
using bufio_testing::FaultyKernel;
using bufio_testing::NameOf;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::WriteFile;
using bufio_testing::WriterOpenTest;

// How regular opens of files were made, by the flags that matter.
std::vector<int> *opened_flags;
std::string *watched_path;

int WatchingOpen(const char *path, int flags, unsigned int mode) {
  if (*watched_path == path && (flags & O_PATH) == 0) {
    opened_flags->push_back(flags & O_ACCMODE);
  }
  return bufio_system_kernel.open(path, flags, mode);
}

// While one exists, the access modes in which `path` is opened are noted.
class OpenWatch {
 public:
  explicit OpenWatch(const std::string &path) : path_(path) {
    system_ = bufio_system_kernel;
    system_.open = WatchingOpen;
    watched_path = &path_;
    opened_flags = &flags_;
    bufio_system = &system_;
  }
  ~OpenWatch() {
    bufio_system = &bufio_system_kernel;
  }
  OpenWatch(const OpenWatch &) = delete;
  OpenWatch &operator=(const OpenWatch &) = delete;

  const std::vector<int> &flags() const {
    return flags_;
  }

 private:
  std::string path_;
  std::vector<int> flags_;
  bufio_system_t system_;
};

// ---- ordinary opens ----

TEST_F(WriterOpenTest, NameThatIsTooLongForASideFileIsOpened) {
  std::string name = testing::TempDir() + "/" + std::string(250, 'n');
  for (bool append : {false, true}) {
    bufio_writer_options_t options = {};
    options.append = append;
    ASSERT_EQ(bufio_writer_open(&writer_, name.c_str(), &options), 0);
    EXPECT_EQ(bufio_writer_puts(&writer_, "text"), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
  }
  EXPECT_EQ(ReadFile(name), "texttext");
  EXPECT_EQ(bufio_journal_replay(name.c_str(), nullptr, nullptr), 0);
  process_.append = false;
  EXPECT_EQ(bufio_writer_open(&writer_, name.c_str(), &process_),
            -ENAMETOOLONG);
  unlink(name.c_str());
}

TEST_F(WriterOpenTest, AppendingNeedsNoMoreThanPermissionToWrite) {
  WriteFile(path_, "old");
  ASSERT_EQ(chmod(path_.c_str(), 0200), 0);
  bufio_writer_options_t options = {};
  options.append = true;
  OpenWatch watch(path_);
  ASSERT_EQ(Open(options), 0);
  EXPECT_EQ(watch.flags(), std::vector<int>({O_WRONLY}));
}

TEST_F(WriterOpenTest, PipeOfANameGetsNoOtherPeerThanTheWriter) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  int reader = open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  for (bool append : {false, true}) {
    bufio_writer_options_t options = {};
    options.append = append;
    OpenWatch watch(path_);
    ASSERT_EQ(Open(options), 0);
    EXPECT_EQ(watch.flags(), std::vector<int>({O_WRONLY}));
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
  }
  EXPECT_EQ(Open(process_), -EINVAL);
  close(reader);
}

TEST_F(WriterOpenTest, LinkToNothingMakesTheFile) {
  ASSERT_EQ(symlink(other_.c_str(), path_.c_str()), 0);
  ASSERT_EQ(Open({}), 0);
  EXPECT_EQ(bufio_writer_puts(&writer_, "text"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(other_), "text");
}

TEST_F(WriterOpenTest, WritersOfOtherLevelsDoNotExcludeEachOther) {
  for (uint64_t at = 1;; at++) {
    WriteFile(path_, "old");
    bufio_writer_t other = {};
    FaultyKernel kernel;
    bool has_run = false;
    kernel.decide = [&](Call, size_t) -> int64_t {
      if (kernel.calls() == at && !has_run) {
        has_run = true;
        EXPECT_EQ(bufio_writer_open(&other, path_.c_str(), nullptr), 0);
        EXPECT_EQ(bufio_writer_close(&other), 0);
      }
      return 0;
    };
    EXPECT_EQ(Open({}), 0);
    bool is_over = !has_run;
    has_run = true;
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    if (is_over) {
      break;
    }
  }
}

// ---- living writers ----

// Somebody else opens, writes and closes at each call of our open: those bytes
// are in front of ours, or one of the two is refused.
TEST_F(WriterOpenTest, WhatIsAppendedDuringAnOpenIsKept) {
  uint64_t accepted = 0;
  for (uint64_t at = 1;; at++) {
    SCOPED_TRACE(testing::Message() << "call " << at);
    WriteFile(path_, "old\n");
    unlink(side_.c_str());
    int theirs = -1;
    bool has_run = false;
    FaultyKernel kernel;
    kernel.decide = [&](Call, size_t) -> int64_t {
      if (kernel.calls() == at && !has_run) {
        has_run = true;
        bufio_writer_t other;
        theirs = bufio_writer_open(&other, path_.c_str(), &process_);
        if (theirs == 0) {
          EXPECT_EQ(bufio_writer_puts(&other, "from another\n"), 0);
          EXPECT_EQ(bufio_writer_close(&other), 0);
        }
      }
      return 0;
    };
    int ours = Open(process_);
    bool is_over = !has_run;
    has_run = true;
    std::string expected = "old\n";
    if (theirs == 0) {
      expected += "from another\n";
      accepted++;
    } else if (!is_over) {
      EXPECT_EQ(theirs, -EBUSY);
    }
    if (ours == 0) {
      EXPECT_EQ(bufio_writer_puts(&writer_, "ours\n"), 0);
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
      expected += "ours\n";
    } else {
      EXPECT_EQ(ours, -EBUSY);
    }
    EXPECT_EQ(ReadFile(path_), expected);
    if (is_over) {
      break;
    }
  }
  EXPECT_GT(accepted, 0u);
}

// Somebody else opens at each call of an open that empties the file, and stays.
TEST_F(WriterOpenTest, LivingWriterIsNotCutOffItsFile) {
  std::string text = Pattern(0, 10000);
  for (bufio_durability_t level :
       {BUFIO_DURABILITY_NONE, BUFIO_DURABILITY_PROCESS}) {
    uint64_t accepted = 0;
    for (uint64_t at = 1;; at++) {
      SCOPED_TRACE(testing::Message() << "level " << level << " call " << at);
      unlink(path_.c_str());
      if (at % 2 == 0) {
        WriteFile(path_, "old");
      }
      bufio_writer_options_t options = {};
      options.durability = level;
      bufio_writer_options_t theirs = process_;
      theirs.append = false;
      bufio_writer_t other = {};
      int status = -1;
      bool has_run = false;
      FaultyKernel kernel;
      kernel.decide = [&](Call, size_t) -> int64_t {
        if (kernel.calls() == (at + 1) / 2 && !has_run) {
          has_run = true;
          status = bufio_writer_open(&other, path_.c_str(), &theirs);
          if (status == 0) {
            EXPECT_EQ(bufio_writer_write(&other, text.data(), text.size()), 0);
            EXPECT_EQ(bufio_writer_flush(&other), 0);
          }
        }
        return 0;
      };
      int ours = Open(options);
      bool is_over = !has_run;
      has_run = true;
      if (status == 0) {
        accepted++;
        EXPECT_EQ(bufio_writer_puts(&other, "tail"), 0);
        EXPECT_EQ(bufio_writer_close(&other), 0);
        EXPECT_EQ(ReadFile(path_), text + "tail");
      }
      if (ours != 0) {
        EXPECT_EQ(ours, -EBUSY);
      }
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
      if (is_over && at % 2 == 0) {
        break;
      }
    }
    EXPECT_GT(accepted, 0u);
  }
}

TEST_F(WriterOpenTest, FileOfTwoNamesHasOneWriter) {
  for (bool is_symbolic : {false, true}) {
    ASSERT_EQ(Open(process_), 0);
    ASSERT_EQ(is_symbolic ? symlink(path_.c_str(), other_.c_str())
                          : link(path_.c_str(), other_.c_str()),
              0);
    bufio_writer_t second;
    EXPECT_EQ(bufio_writer_open(&second, other_.c_str(), &process_), -EBUSY);
    EXPECT_EQ(bufio_writer_open(&second, other_.c_str(), nullptr), -EBUSY);
    EXPECT_EQ(bufio_writer_puts(&writer_, "AAAA"), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    ASSERT_EQ(bufio_writer_open(&second, other_.c_str(), &process_), 0);
    EXPECT_EQ(bufio_writer_puts(&second, "BBBB"), 0);
    EXPECT_EQ(bufio_writer_close(&second), 0);
    EXPECT_EQ(ReadFile(path_), "AAAABBBB");
    unlink(path_.c_str());
    unlink(other_.c_str());
  }
}

TEST_F(WriterOpenTest, FileThatSomebodyElseHasLockedIsBusy) {
  WriteFile(path_, "text");
  int descriptor = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(flock(descriptor, LOCK_EX), 0);
  EXPECT_EQ(Open(process_), -EBUSY);
  EXPECT_EQ(Open({}), -EBUSY);
  EXPECT_EQ(ReadFile(path_), "text");
  bufio_writer_options_t options = {};
  options.append = true;
  EXPECT_EQ(Open(options), 0);
  close(descriptor);
}

// ---- killed writers ----

TEST_F(WriterOpenTest, TailOfAKilledWriterIsAppendedAtAnyLevel) {
  for (int level = 0; level < 4; level++) {
    unlink(path_.c_str());
    KillAWriterOf("accepted");
    bufio_writer_options_t options = {};
    options.append = true;
    options.durability = static_cast<bufio_durability_t>(level);
    ASSERT_EQ(Open(options), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    EXPECT_EQ(ReadFile(path_), "accepted");
    EXPECT_FALSE(Exists(side_));
  }
}

TEST_F(WriterOpenTest, EmptyingRemovesTheTailToo) {
  for (bufio_durability_t level :
       {BUFIO_DURABILITY_NONE, BUFIO_DURABILITY_PROCESS}) {
    KillAWriterOf("accepted");
    bufio_writer_options_t options = {};
    options.durability = level;
    ASSERT_EQ(Open(options), 0);
    EXPECT_EQ(bufio_writer_puts(&writer_, "new"), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    EXPECT_EQ(ReadFile(path_), "new");
    EXPECT_FALSE(Exists(side_));
    unlink(path_.c_str());
  }
}

TEST_F(WriterOpenTest, TailOfARemovedFileDoesNotComeBack) {
  for (int level = 0; level < 4; level++) {
    for (bool append : {false, true}) {
      KillAWriterOf("secret");
      unlink(path_.c_str());
      bufio_writer_options_t options = {};
      options.durability = static_cast<bufio_durability_t>(level);
      options.append = append;
      EXPECT_EQ(Open(options), -EPROTO);
      options.exclusive = true;
      EXPECT_EQ(Open(options), -EPROTO);
      options.exclusive = false;
      EXPECT_FALSE(Exists(path_));
      EXPECT_TRUE(Exists(side_));
      // Nor if somebody else makes it anew.
      WriteFile(path_, "");
      EXPECT_EQ(Open(options), -EPROTO);
      EXPECT_EQ(ReadFile(path_), "");
      EXPECT_EQ(unlink(side_.c_str()), 0);
      EXPECT_EQ(Open(options), 0);
      EXPECT_EQ(bufio_writer_tell(&writer_), 0u);
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
      unlink(path_.c_str());
    }
  }
}

TEST_F(WriterOpenTest, SideFileOfARenamedFileIsKept) {
  KillAWriterOf("accepted");
  ASSERT_EQ(rename(path_.c_str(), other_.c_str()), 0);
  EXPECT_EQ(Open({}), -EPROTO);
  WriteFile(path_, "a new one");
  EXPECT_EQ(Open({}), -EPROTO);
  EXPECT_EQ(ReadFile(path_), "a new one");
  EXPECT_EQ(bufio_journal_replay(other_.c_str(), side_.c_str(), nullptr), 0);
  EXPECT_EQ(ReadFile(other_), "accepted");
}

TEST_F(WriterOpenTest, FileOfAStrangerIsNotTakenForASideFile) {
  WriteFile(path_, "text");
  for (const char *content : {"data", "\0\0data"}) {
    std::string bytes(content, content[0] == 'd' ? 4 : 6);
    WriteFile(other_, bytes);
    for (int level = 0; level < 4; level++) {
      bufio_writer_options_t options = {};
      options.durability = static_cast<bufio_durability_t>(level);
      options.journal_path = other_.c_str();
      EXPECT_EQ(Open(options), -EPROTO);
      EXPECT_EQ(ReadFile(other_), bytes);
      EXPECT_EQ(ReadFile(path_), "text");
    }
  }
}

// An open that dies, at any call, is made good by the next of its kind.
TEST_F(WriterOpenTest, OpenThatDiesCanBeRepeated) {
  for (bool append : {true, false}) {
    for (uint64_t at = 1;; at++) {
      SCOPED_TRACE(testing::Message() << "append " << append << " call " << at);
      process_.append = true;
      KillAWriterOf("accepted");
      process_.append = append;
      pid_t child = fork();
      if (child == 0) {
        FaultyKernel kernel;
        kernel.after = [&](Call, int64_t) {
          if (kernel.calls() == at) {
            kill(getpid(), SIGKILL);
          }
        };
        _exit(Open(process_) == 0 ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
      ASSERT_EQ(Open(process_), 0);
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
      EXPECT_EQ(ReadFile(path_), append ? "accepted" : "");
      EXPECT_FALSE(Exists(side_));
      unlink(path_.c_str());
      if (WIFEXITED(status)) {
        break;
      }
    }
  }
}

TEST_F(WriterOpenTest, OpenThatDiesWhileEmptyingKeepsAllOrNothing) {
  uint64_t emptied = 0;
  for (uint64_t at = 1;; at++) {
    SCOPED_TRACE(testing::Message() << "call " << at);
    process_.append = true;
    WriteFile(path_, "handed over, ");
    KillAWriterOf("accepted");
    pid_t child = fork();
    if (child == 0) {
      FaultyKernel kernel;
      kernel.after = [&](Call, int64_t) {
        if (kernel.calls() == at) {
          kill(getpid(), SIGKILL);
        }
      };
      _exit(Open({}) == 0 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    ASSERT_EQ(Open(process_), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    std::string left = ReadFile(path_);
    EXPECT_TRUE(left.empty() || left == "handed over, accepted") << left;
    EXPECT_FALSE(Exists(side_));
    if (WIFEXITED(status)) {
      break;
    }
    emptied += left.empty();
  }
  EXPECT_GT(emptied, 0u);
}

TEST_F(WriterOpenTest, FileThatCannotBeEmptiedKeepsItsTail) {
  for (bufio_durability_t level :
       {BUFIO_DURABILITY_NONE, BUFIO_DURABILITY_PROCESS}) {
    KillAWriterOf("accepted");
    bufio_writer_options_t options = {};
    options.durability = level;
    {
      FaultyKernel kernel;
      kernel.decide = [](Call call, size_t) -> int64_t {
        return call == Call::kTruncate ? -EIO : 0;
      };
      EXPECT_EQ(Open(options), -EIO);
    }
    EXPECT_EQ(bufio_journal_replay(path_.c_str(), nullptr, nullptr), 0);
    EXPECT_EQ(ReadFile(path_), "accepted");
    unlink(path_.c_str());
  }
}

// ---- attach ----

class WriterAttachTest : public WriterOpenTest {
 protected:
  WriterAttachTest() {
    process_.append = false;
    process_.journal_path = side_.c_str();
    descriptor_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  }
  ~WriterAttachTest() override {
    close(descriptor_);
  }

  int descriptor_;
};

TEST_F(WriterAttachTest, PositionThatIsNotTheEndIsRefused) {
  ASSERT_EQ(write(descriptor_, "0123456789", 10), 10);
  for (off_t position : {0, 2, 9, 11}) {
    ASSERT_EQ(lseek(descriptor_, position, SEEK_SET), position);
    EXPECT_EQ(bufio_writer_attach(&writer_, descriptor_, &process_), -EINVAL);
    EXPECT_FALSE(Exists(side_));
  }
}

TEST_F(WriterAttachTest, DescriptorStandsBehindWhatWasWritten) {
  ASSERT_EQ(write(descriptor_, "0123456789", 10), 10);
  ASSERT_EQ(bufio_writer_attach(&writer_, descriptor_, &process_), 0);
  EXPECT_EQ(bufio_writer_tell(&writer_), 10u);
  EXPECT_EQ(bufio_writer_puts(&writer_, "ZZ"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(lseek(descriptor_, 0, SEEK_CUR), 12);
  EXPECT_EQ(ReadFile(path_), "0123456789ZZ");
}

TEST_F(WriterAttachTest, AttachedFileHasOneWriter) {
  ASSERT_EQ(bufio_writer_attach(&writer_, descriptor_, &process_), 0);
  bufio_writer_t second;
  process_.journal_path = nullptr;
  process_.append = true;
  EXPECT_EQ(bufio_writer_open(&second, path_.c_str(), &process_), -EBUSY);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  ASSERT_EQ(bufio_writer_open(&second, path_.c_str(), &process_), 0);
  EXPECT_EQ(bufio_writer_close(&second), 0);
}

TEST_F(WriterAttachTest, KilledParentWhoseChildLivesIsReplayed) {
  int stop[2];
  int ready[2];
  ASSERT_EQ(pipe(stop), 0);
  ASSERT_EQ(pipe(ready), 0);
  pid_t child = fork();
  char byte = 0;
  if (child == 0) {
    if (bufio_writer_attach(&writer_, descriptor_, &process_) != 0 ||
        bufio_writer_puts(&writer_, "text") != 0) {
      _exit(1);
    }
    if (fork() == 0) {
      // Has the descriptor, and lives until told.
      (void)!write(ready[1], &byte, 1);
      close(stop[1]);
      _exit(static_cast<int>(read(stop[0], &byte, 1)));
    }
    (void)!read(ready[0], &byte, 1);
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(bufio_journal_replay(path_.c_str(), nullptr, nullptr), 0);
  EXPECT_EQ(ReadFile(path_), "text");
  for (int end : {stop[0], stop[1], ready[0], ready[1]}) {
    close(end);
  }
}

TEST_F(WriterAttachTest, EveryCallMayFailAndLeavesNothingBehind) {
  for (uint64_t failing = 1;; failing++) {
    int lowest = dup(0);
    close(lowest);
    Call failed = Call::kOpen;
    bool all_done;
    {
      FaultyKernel kernel;
      kernel.decide = [&](Call call, size_t) -> int64_t {
        failed = kernel.calls() == failing ? call : failed;
        return kernel.calls() == failing ? -EIO : 0;
      };
      int status = bufio_writer_attach(&writer_, descriptor_, &process_);
      all_done = kernel.calls() < failing;
      kernel.decide = nullptr;
      if (status != 0) {
        EXPECT_EQ(status, -EIO) << NameOf(failed);
      }
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
    }
    EXPECT_FALSE(Exists(side_)) << NameOf(failed);
    int again = dup(0);
    close(again);
    EXPECT_EQ(again, lowest) << NameOf(failed) << " leaked a descriptor";
    if (all_done) {
      break;
    }
  }
}

}  // namespace
