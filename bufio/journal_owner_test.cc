// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Side files, folders and notes of somebody else: what a note may lead to, and
// what must not happen to it.

#include <errno.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/io_system.h"
#include "bufio/journal.h"
#include "bufio/journal_testing.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::Exists;
using bufio_testing::FaultyKernel;
using bufio_testing::ForEachWay;
using bufio_testing::JournalNoteTest;
using bufio_testing::ReadFile;
using bufio_testing::RunChild;
using bufio_testing::TempPath;
using bufio_testing::WriteFile;

// ---- whose it is ----

std::map<ino_t, uid_t> *owners;

int WithOwner(int status, struct stat *stat) {
  if (status == 0 && owners->count(stat->st_ino) != 0) {
    stat->st_uid = (*owners)[stat->st_ino];
  }
  return status;
}

int StatWithOwners(int descriptor, struct stat *out_stat) {
  return WithOwner(bufio_system_kernel.stat(descriptor, out_stat), out_stat);
}

int StatAtWithOwners(int folder, const char *name, int flags,
                     struct stat *out_stat) {
  return WithOwner(bufio_system_kernel.stat_at(folder, name, flags, out_stat),
                   out_stat);
}

// While one exists, files seem to belong to others.
class OtherOwners {
 public:
  OtherOwners() {
    table_ = bufio_system_kernel;
    table_.stat = StatWithOwners;
    table_.stat_at = StatAtWithOwners;
    owners = &owners_;
    bufio_system = &table_;
  }
  ~OtherOwners() {
    bufio_system = &bufio_system_kernel;
  }
  OtherOwners(const OtherOwners &) = delete;
  OtherOwners &operator=(const OtherOwners &) = delete;

  void Give(const std::string &path, uid_t owner) {
    struct stat file = {};
    ASSERT_EQ(stat(path.c_str(), &file), 0);
    owners_[file.st_ino] = owner;
  }

 private:
  std::map<ino_t, uid_t> owners_;
  bufio_system_t table_;
};

TEST_F(JournalNoteTest, NoteThatLeadsToAStrangersGoodSideFileCountsForNothing) {
  ForEachWay([&](bufio_writer_options_t options) {
    WriteFile(path_, "old");
    KillAWriterOf("accepted");
    LinkOther();
    std::string side = ReadFile(side_);
    {
      OtherOwners others;
      others.Give(side_, geteuid() + 1);
      ASSERT_EQ(OpenOther(options), 0);
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
    }
    EXPECT_EQ(ReadFile(other_), options.append ? "old" : "");
    EXPECT_EQ(ReadFile(side_), side);
    unlink(path_.c_str());
    unlink(other_.c_str());
    unlink(side_.c_str());
  });
}

TEST_F(JournalNoteTest, TailOfTheFilesOwnerIsNotForOthersToReplace) {
  WriteFile(path_, "old");
  KillAWriterOf("accepted");
  LinkOther();
  std::string side = ReadFile(side_);
  OtherOwners others;
  others.Give(side_, geteuid() + 1);
  others.Give(path_, geteuid() + 1);
  ForEachWay([&](bufio_writer_options_t options) {
    EXPECT_EQ(OpenOther(options), -EACCES);
    EXPECT_EQ(ReadFile(path_), "old");
    EXPECT_EQ(ReadFile(side_), side);
  });
  // Whoever names the place means it.
  EXPECT_EQ(bufio_journal_replay(other_.c_str(), side_.c_str(), nullptr), 0);
  EXPECT_EQ(ReadFile(path_), "oldaccepted");
}

TEST_F(JournalNoteTest, SideFileOfTheOwnersClosedWriterKeepsNobodyOut) {
  ForEachWay([&](bufio_writer_options_t options) {
    ASSERT_EQ(Open(process_), 0);
    ASSERT_EQ(bufio_writer_puts(&writer_, "old"), 0);
    {
      FaultyKernel kernel;
      kernel.decide = [](Call call, size_t) {
        return call == Call::kUnlink ? -EACCES : 0;
      };
      ASSERT_EQ(bufio_writer_close(&writer_), 0);
    }
    LinkOther();
    OtherOwners others;
    others.Give(side_, geteuid() + 1);
    others.Give(path_, geteuid() + 1);
    ASSERT_EQ(OpenOther(options), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    EXPECT_EQ(ReadFile(other_), options.append ? "old" : "");
    for (const std::string &name : {path_, other_, side_}) {
      unlink(name.c_str());
    }
  });
}

// ---- names that change under us ----

// Calls `function` once, in the middle of a replay.
void InReplay(FaultyKernel *kernel, const std::function<void()> &function) {
  kernel->decide = [kernel, function](Call call, size_t) -> int64_t {
    if (call == Call::kWriteAt && kernel->count(call) == 1) {
      function();
    }
    return 0;
  };
}

TEST_F(JournalNoteTest, FolderThatIsReplacedCostsNobodyAFile) {
  const std::string folder = TempPath("folder");
  const std::string moved = folder + "-moved";
  const std::string side = "/log.bufio-journal";
  ASSERT_EQ(mkdir(folder.c_str(), 0700), 0);
  path_ = folder + "/log";
  side_ = folder + side;
  KillAWriterOf("accepted");
  LinkOther();
  {
    FaultyKernel kernel;
    InReplay(&kernel, [&] {
      std::filesystem::rename(folder, moved);
      std::filesystem::create_directory(folder);
      WriteFile(folder + side, "another's");
    });
    EXPECT_EQ(bufio_journal_replay(other_.c_str(), nullptr, nullptr), 0);
  }
  EXPECT_EQ(ReadFile(other_), "accepted");
  EXPECT_EQ(ReadFile(folder + side), "another's");
  EXPECT_FALSE(Exists(moved + side));
  std::filesystem::remove_all(folder);
  std::filesystem::remove_all(moved);
}

TEST_F(JournalNoteTest, NameThatIsGivenToAnotherFileIsNotRemoved) {
  const std::string moved = TempPath("moved");
  for (bool by_note : {false, true}) {
    KillAWriterOf("accepted");
    LinkOther();
    {
      FaultyKernel kernel;
      InReplay(&kernel, [&] {
        std::filesystem::rename(side_, moved);
        WriteFile(side_, "another's");
      });
      EXPECT_EQ(bufio_journal_replay((by_note ? other_ : path_).c_str(),
                                     nullptr, nullptr),
                -EBUSY);
    }
    EXPECT_EQ(ReadFile(other_), "accepted");
    EXPECT_EQ(ReadFile(side_), "another's");
    for (const std::string &name : {path_, other_, side_, moved}) {
      unlink(name.c_str());
    }
  }
}

// ---- notes that cannot be read ----

// In a child: root is as anybody else.
void DropCapabilities() {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct none[2] = {};
  if (syscall(SYS_capset, &header, none) != 0) {
    _exit(100);
  }
}

TEST_F(JournalNoteTest, WhoMayOnlyWriteIsToldOfANote) {
  WriteFile(path_, "old");
  KillAWriterOf("accepted");
  LinkOther();
  ASSERT_EQ(chmod(path_.c_str(), 0200), 0);
  int status = RunChild([&] {
    DropCapabilities();
    for (bool append : {false, true}) {
      bufio_writer_options_t options = {};
      options.append = append;
      if (OpenOther(options) != -EACCES) {
        _exit(1);
      }
    }
    _exit(0);
  });
  EXPECT_EQ(status, 0);
  ASSERT_EQ(chmod(path_.c_str(), 0600), 0);
  EXPECT_EQ(bufio_journal_replay(other_.c_str(), nullptr, nullptr), 0);
  EXPECT_EQ(ReadFile(path_), "oldaccepted");
}

TEST_F(JournalNoteTest, WhoMayOnlyWriteNeedsNoMoreWithoutANote) {
  WriteFile(path_, "old");
  ASSERT_EQ(setxattr(path_.c_str(), "user.bufio.other", "x", 1, 0), 0);
  ASSERT_EQ(chmod(path_.c_str(), 0200), 0);
  int status = RunChild([&] {
    DropCapabilities();
    bufio_writer_options_t options = {};
    options.append = true;
    _exit(Open(options) == 0 && bufio_writer_puts(&writer_, " more") == 0 &&
                  bufio_writer_close(&writer_) == 0
              ? 0
              : 1);
  });
  EXPECT_EQ(status, 0);
  ASSERT_EQ(chmod(path_.c_str(), 0600), 0);
  EXPECT_EQ(ReadFile(path_), "old more");
}

}  // namespace
