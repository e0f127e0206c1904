// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/bufio_replace.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "bufio/bufio_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::Exists;
using bufio_testing::FaultyKernel;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::TempPath;
using bufio_testing::WriteFile;

class BufioReplaceTest : public testing::Test {
 protected:
  BufioReplaceTest() {
    mkdir(folder_.c_str(), 0700);
  }

  ~BufioReplaceTest() override {
    bufio_replace_abort(&replace_);
    Clear();
    rmdir(folder_.c_str());
  }

  void Clear() {
    DIR *folder = opendir(folder_.c_str());
    while (struct dirent *entry = readdir(folder)) {
      unlink((folder_ + "/" + entry->d_name).c_str());
    }
    closedir(folder);
  }

  // Names in the folder.
  int Count() {
    int count = 0;
    DIR *folder = opendir(folder_.c_str());
    while (struct dirent *entry = readdir(folder)) {
      std::string name = entry->d_name;
      count += name != "." && name != "..";
    }
    closedir(folder);
    return count;
  }

  void Begin(const std::string &text) {
    ASSERT_EQ(bufio_replace_open(&replace_, path_.c_str(), nullptr), 0);
    ASSERT_EQ(bufio_writer_write(bufio_replace_writer(&replace_), text.data(),
                                 text.size()),
              0);
  }

  std::string folder_ = TempPath("replace");
  std::string path_ = folder_ + "/file";
  bufio_replace_t replace_ = {};
};

TEST_F(BufioReplaceTest, NewFileAppearsAtCommit) {
  Begin(Pattern(0, 300000));
  EXPECT_FALSE(Exists(path_));
  EXPECT_EQ(bufio_replace_commit(&replace_), 0);
  EXPECT_EQ(ReadFile(path_), Pattern(0, 300000));
  EXPECT_EQ(Count(), 1);
  EXPECT_EQ(bufio_replace_commit(&replace_), -EBADF);
}

TEST_F(BufioReplaceTest, OldFileIsThereUntilCommitAndItsModeStays) {
  WriteFile(path_, "old");
  chmod(path_.c_str(), 0751);
  Begin("new");
  EXPECT_EQ(ReadFile(path_), "old");
  EXPECT_EQ(bufio_replace_commit(&replace_), 0);
  EXPECT_EQ(ReadFile(path_), "new");
  struct stat stat = {};
  ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 07777, 0751u);
  EXPECT_EQ(Count(), 1);
}

TEST_F(BufioReplaceTest, AbortLeavesTheOldFileAndNothingElse) {
  WriteFile(path_, "old");
  Begin("new");
  bufio_replace_abort(&replace_);
  bufio_replace_abort(&replace_);
  bufio_replace_abort(nullptr);
  EXPECT_EQ(ReadFile(path_), "old");
  EXPECT_EQ(Count(), 1);
}

TEST_F(BufioReplaceTest, NamesWithoutAFolderAndBadOnes) {
  EXPECT_EQ(bufio_replace_open(&replace_, "/no/such/file", nullptr), -ENOENT);
  EXPECT_EQ(bufio_replace_open(&replace_, "/tmp/", nullptr), -EINVAL);
  EXPECT_EQ(bufio_replace_open(&replace_, "", nullptr), -EINVAL);
  ASSERT_EQ(chdir(folder_.c_str()), 0);
  path_ = "file";
  Begin("here");
  EXPECT_EQ(bufio_replace_commit(&replace_), 0);
  EXPECT_EQ(ReadFile("file"), "here");
}

TEST_F(BufioReplaceTest, WithoutTmpfileANamedOneServes) {
  WriteFile(path_, "old");
  FaultyKernel kernel;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    return call == Call::kOpen && kernel.count(call) == 1 ? -EOPNOTSUPP : 0;
  };
  Begin("new");
  EXPECT_EQ(Count(), 2);
  EXPECT_EQ(bufio_replace_commit(&replace_), 0);
  EXPECT_EQ(ReadFile(path_), "new");
  EXPECT_EQ(Count(), 1);
}

// Whichever call fails, the old file is there, or the new one whole.
TEST_F(BufioReplaceTest, EveryCallMayFail) {
  for (bool tmpfile : {true, false}) {
    for (int error : {EIO, ENOSPC, EACCES}) {
      for (uint64_t failing = 1;; failing++) {
        WriteFile(path_, "old");
        FaultyKernel kernel;
        Call failed = Call::kRead;
        kernel.decide = [&](Call call, size_t) -> int64_t {
          if (!tmpfile && call == Call::kOpen && kernel.count(call) == 1) {
            return -EOPNOTSUPP;
          }
          if (kernel.calls() == failing) {
            failed = call;
            return -error;
          }
          return 0;
        };
        int status = bufio_replace_open(&replace_, path_.c_str(), nullptr);
        if (status == 0) {
          std::string text = Pattern(0, 200000);
          (void)bufio_writer_write(bufio_replace_writer(&replace_), text.data(),
                                   text.size());
          status = bufio_replace_commit(&replace_);
        }
        std::string content = ReadFile(path_);
        if (status == 0) {
          EXPECT_EQ(content, Pattern(0, 200000)) << NameOf(failed);
        } else {
          EXPECT_EQ(status, -error) << NameOf(failed);
          EXPECT_TRUE(content == "old" || content == Pattern(0, 200000));
        }
        EXPECT_EQ(Count(), failed == Call::kUnlink ? 2 : 1) << NameOf(failed);
        if (kernel.calls() < failing) {
          EXPECT_EQ(status, 0);
          break;
        }
        Clear();
      }
    }
  }
}

// Killed at whichever call: the same.
TEST_F(BufioReplaceTest, DeathAtEveryCallLeavesOldOrNew) {
  int places = 0;
  for (uint64_t at = 1;; at++) {
    Clear();
    WriteFile(path_, "old");
    pid_t child = fork();
    if (child == 0) {
      FaultyKernel kernel;
      kernel.after = [&](Call, int64_t) {
        if (kernel.calls() == at) {
          kill(getpid(), SIGKILL);
        }
      };
      Begin(Pattern(0, 200000));
      _exit(bufio_replace_commit(&replace_) == 0 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    std::string content = ReadFile(path_);
    EXPECT_TRUE(content == "old" || content == Pattern(0, 200000));
    if (WIFEXITED(status)) {
      EXPECT_EQ(WEXITSTATUS(status), 0);
      EXPECT_EQ(content, Pattern(0, 200000));
      break;
    }
    places++;
  }
  EXPECT_GT(places, 8);
}

TEST_F(BufioReplaceTest, ChildMayOnlyAbort) {
  Begin("parent");
  pid_t child = fork();
  if (child == 0) {
    _exit(bufio_replace_commit(&replace_) == -ECHILD ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(bufio_replace_commit(&replace_), 0);
  EXPECT_EQ(ReadFile(path_), "parent");
}

}  // namespace
