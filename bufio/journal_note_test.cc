// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The note on a file that says where its side file is: how a tail is found by
// it, and what is no note. Whose side files count: journal_owner_test.cc.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "bufio/bufio_testing.h"
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
using bufio_testing::WithoutNotesTest;
using bufio_testing::WriteFile;

constexpr const char *kNote = "user.bufio.journal";

enum class Name {
  kHard,
  kSymbolic,
  kNew
};

TEST_F(JournalNoteTest, TailIsFoundUnderAnyNameOfTheFile) {
  for (Name name : {Name::kHard, Name::kSymbolic, Name::kNew}) {
    for (int level = 0; level < 4; level++) {
      for (bool append : {false, true}) {
        KillAWriterOf("accepted");
        const char *other = other_.c_str();
        ASSERT_EQ(name == Name::kHard       ? link(path_.c_str(), other)
                  : name == Name::kSymbolic ? symlink(path_.c_str(), other)
                                            : rename(path_.c_str(), other),
                  0);
        bufio_writer_options_t options = {};
        options.durability = static_cast<bufio_durability_t>(level);
        options.append = append;
        ASSERT_EQ(bufio_writer_open(&writer_, other, &options), 0);
        EXPECT_FALSE(Exists(side_));
        EXPECT_EQ(bufio_writer_puts(&writer_, " more"), 0);
        EXPECT_EQ(bufio_writer_close(&writer_), 0);
        EXPECT_EQ(ReadFile(other), append ? "accepted more" : " more");
        EXPECT_LT(getxattr(other, "user.bufio.journal", nullptr, 0), 0);
        unlink(path_.c_str());
        unlink(other);
      }
    }
  }
}

TEST_F(JournalNoteTest, ReplayAndAttachFindTheTailUnderAnotherName) {
  KillAWriterOf("one");
  ASSERT_EQ(link(path_.c_str(), other_.c_str()), 0);
  bufio_journal_result_t result = {};
  EXPECT_EQ(bufio_journal_replay(other_.c_str(), nullptr, &result), 0);
  EXPECT_EQ(result.appended_bytes, 3u);
  EXPECT_EQ(ReadFile(path_), "one");
  KillAWriterOf(" two");
  int descriptor = open(other_.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(lseek(descriptor, 0, SEEK_END), 3);
  std::string side = other_ + ".bufio-journal";
  process_.journal_path = side.c_str();
  // The replay makes the file longer: the descriptor is not at its end.
  ASSERT_EQ(bufio_writer_attach(&writer_, descriptor, &process_), 0);
  EXPECT_EQ(bufio_writer_tell(&writer_), 7u);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "one two");
  close(descriptor);
}

// What an open leaves that was killed before its side file began is no reason
// not to look for the tail.
TEST_F(JournalNoteTest, UnfinishedSideFileOfThisNameDoesNotHideTheOther) {
  for (int level = 0; level < 4; level++) {
    KillAWriterOf("accepted");
    ASSERT_EQ(link(path_.c_str(), other_.c_str()), 0);
    WriteFile(other_ + ".bufio-journal", std::string(8192, '\0'));
    bufio_writer_options_t options = {};
    options.durability = static_cast<bufio_durability_t>(level);
    options.append = true;
    ASSERT_EQ(bufio_writer_open(&writer_, other_.c_str(), &options), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    EXPECT_EQ(ReadFile(path_), "accepted");
    EXPECT_FALSE(Exists(side_));
    EXPECT_FALSE(Exists(other_ + ".bufio-journal"));
    unlink(path_.c_str());
    unlink(other_.c_str());
  }
}

TEST_F(JournalNoteTest, LivingWriterOfAnotherNameIsBusyToo) {
  ASSERT_EQ(Open(process_), 0);
  ASSERT_EQ(link(path_.c_str(), other_.c_str()), 0);
  bufio_writer_options_t options = {};
  options.append = true;
  bufio_writer_t second;
  EXPECT_EQ(bufio_writer_open(&second, other_.c_str(), &options), -EBUSY);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(bufio_writer_open(&second, other_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_close(&second), 0);
}

// A relative name means another file by then.
TEST_F(WithoutNotesTest, CloseInAnotherFolderRemovesItsOwnSideFileOnly) {
  const std::string folders[] = {TempPath("a"), TempPath("b")};
  for (const std::string &folder : folders) {
    ASSERT_EQ(mkdir(folder.c_str(), 0700), 0);
  }
  const std::string old_folder = std::filesystem::current_path();
  ASSERT_EQ(chdir(folders[0].c_str()), 0);
  ASSERT_EQ(bufio_writer_open(&writer_, "log", &process_), 0);
  ASSERT_EQ(chdir(folders[1].c_str()), 0);
  WriteFile("log.bufio-journal", "another's");
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile("log.bufio-journal"), "another's");
  EXPECT_FALSE(Exists(folders[0] + "/log.bufio-journal"));
  // And when the folder of the name has another one.
  ASSERT_EQ(chdir(old_folder.c_str()), 0);
  ASSERT_EQ(
      bufio_writer_open(&writer_, (folders[0] + "/log").c_str(), &process_), 0);
  std::filesystem::rename(folders[0], folders[0] + "-moved");
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_FALSE(Exists(folders[0] + "-moved/log.bufio-journal"));
  std::filesystem::remove_all(folders[0] + "-moved");
  std::filesystem::remove_all(folders[1]);
}

// As `cp --preserve=xattr` makes it.
TEST_F(JournalNoteTest, NoteOfACopyIsNotFollowed) {
  KillAWriterOf("accepted");
  char note[5000];
  ssize_t len =
      getxattr(path_.c_str(), "user.bufio.journal", note, sizeof(note));
  ASSERT_GT(len, 0);
  WriteFile(other_, "old");
  ASSERT_EQ(setxattr(other_.c_str(), "user.bufio.journal", note,
                     static_cast<size_t>(len), 0),
            0);
  bufio_writer_options_t options = {};
  options.append = true;
  FaultyKernel kernel;
  // Not even looked at: it may be where the copy's owner may not.
  uint64_t looks = 0;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    looks += call == Call::kOpen || call == Call::kStat;
    return 0;
  };
  ASSERT_EQ(bufio_writer_open(&writer_, other_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  // A side file beside it, what its name stands for, and the file.
  EXPECT_EQ(looks, 3u);
  EXPECT_EQ(ReadFile(other_), "old");
  EXPECT_TRUE(Exists(side_));
}

TEST_F(JournalNoteTest, NoteThatLeadsAstrayCountsForNothing) {
  KillAWriterOf("accepted");
  std::string pipe = TempPath("pipe");
  std::string junk = TempPath("junk");
  std::string empty = TempPath("empty");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  WriteFile(junk, std::string(5000, 'j'));
  WriteFile(empty, "");
  for (const std::string &note :
       {side_, std::string("relative"), junk, empty, pipe, pipe + "/below",
        std::string("/"), std::string("/dev/null"), std::string("/\0x", 3),
        std::string()}) {
    for (bool append : {true, false}) {
      WriteFile(other_, "old");
      struct stat file = {};
      ASSERT_EQ(stat(other_.c_str(), &file), 0);
      char start[64];
      snprintf(start, sizeof(start), BUFIO_NOTE_FORMAT,
               static_cast<unsigned long long>(file.st_dev),
               static_cast<unsigned long long>(file.st_ino));
      std::string text = note.empty() ? note : start + note;
      ASSERT_EQ(setxattr(other_.c_str(), "user.bufio.journal", text.data(),
                         text.size(), 0),
                0);
      for (int level = 0; level < 4; level++) {
        bufio_writer_options_t options = {};
        options.durability = static_cast<bufio_durability_t>(level);
        options.append = append;
        ASSERT_EQ(bufio_writer_open(&writer_, other_.c_str(), &options), 0);
        EXPECT_EQ(bufio_writer_close(&writer_), 0);
        EXPECT_EQ(ReadFile(other_), append ? "old" : "");
      }
      unlink(other_.c_str());
    }
  }
  EXPECT_EQ(ReadFile(junk), std::string(5000, 'j'));
  EXPECT_TRUE(Exists(empty));
  EXPECT_EQ(bufio_journal_replay(path_.c_str(), nullptr, nullptr), 0);
  EXPECT_EQ(ReadFile(path_), "accepted");
  unlink(pipe.c_str());
  unlink(junk.c_str());
  unlink(empty.c_str());
}

TEST_F(JournalNoteTest, NoteThatCannotBeReadIsAnErrorAndCostsNothing) {
  KillAWriterOf("accepted");
  ASSERT_EQ(link(path_.c_str(), other_.c_str()), 0);
  bufio_writer_options_t options = {};
  for (bool append : {false, true}) {
    options.append = append;
    FaultyKernel kernel;
    kernel.decide = [](Call call, size_t) -> int64_t {
      return call == Call::kGetNote ? -EIO : 0;
    };
    EXPECT_EQ(bufio_writer_open(&writer_, other_.c_str(), &options), -EIO);
  }
  ASSERT_EQ(bufio_writer_open(&writer_, other_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "accepted");
}

TEST_F(WithoutNotesTest, FileSystemWithoutNotesHasLevelProcess) {
  FaultyKernel kernel;
  kernel.decide = [](Call call, size_t) -> int64_t {
    return call == Call::kGetNote || call == Call::kSetNote ? -EOPNOTSUPP : 0;
  };
  KillAWriterOf("accepted");
  ASSERT_EQ(Open(process_), 0);
  EXPECT_EQ(bufio_writer_puts(&writer_, " more"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "accepted more");
}

// ---- a failure changes nothing ----

TEST_F(JournalNoteTest, JunkBesideTheNameIsAnErrorBeforeAnythingIsChanged) {
  WriteFile(path_, "handed over, ");
  KillAWriterOf("accepted");
  LinkOther();
  const std::string junk(5000, 'j');
  WriteFile(other_side_, junk);
  std::string side = ReadFile(side_);
  ForEachWay([&](bufio_writer_options_t options) {
    EXPECT_EQ(OpenOther(options), -EPROTO);
    EXPECT_EQ(ReadFile(path_), "handed over, ");
    EXPECT_EQ(ReadFile(side_), side);
    EXPECT_EQ(ReadFile(other_side_), junk);
  });
  EXPECT_EQ(bufio_journal_replay(other_.c_str(), nullptr, nullptr), -EPROTO);
  unlink(other_side_.c_str());
  EXPECT_EQ(bufio_journal_replay(other_.c_str(), nullptr, nullptr), 0);
  EXPECT_EQ(ReadFile(path_), "handed over, accepted");
}

// A writer that did not see the note of the one before it.
TEST_F(JournalNoteTest, SideFilesThatContradictEachOtherChangeNothing) {
  KillAWriterOf("one");
  ASSERT_EQ(removexattr(path_.c_str(), kNote), 0);
  LinkOther();
  std::swap(path_, other_);
  std::swap(side_, other_side_);
  KillAWriterOf("two");
  std::string sides[] = {ReadFile(side_), ReadFile(other_side_)};
  bufio_writer_options_t options = {};
  options.append = true;
  // `other_` is the name that the first one used.
  EXPECT_EQ(OpenOther(options), -EPROTO);
  EXPECT_EQ(ReadFile(path_), "");
  EXPECT_EQ(ReadFile(side_), sides[0]);
  EXPECT_EQ(ReadFile(other_side_), sides[1]);
}

TEST_F(JournalNoteTest, SideFileThatHasNothingToAddDoesNotContradict) {
  int status = RunChild([&] {
    if (Open(process_) == 0 && bufio_writer_puts(&writer_, "one ") == 0 &&
        bufio_writer_flush(&writer_) == 0) {
      kill(getpid(), SIGKILL);
    }
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  ASSERT_EQ(removexattr(path_.c_str(), kNote), 0);
  LinkOther();
  std::swap(path_, other_);
  std::swap(side_, other_side_);
  KillAWriterOf("two");
  bufio_journal_result_t result = {};
  EXPECT_EQ(bufio_journal_replay(other_.c_str(), nullptr, &result), 0);
  EXPECT_EQ(result.appended_bytes, 3u);
  EXPECT_EQ(ReadFile(path_), "one two");
  EXPECT_FALSE(Exists(side_));
  EXPECT_FALSE(Exists(other_side_));
}

// ---- notes that cannot be written ----

TEST_F(WithoutNotesTest, NoteThatCannotBeWrittenIsAnErrorOfOpen) {
  WriteFile(path_, "old");
  for (int error : {ENOSPC, EDQUOT, EIO, EACCES, ERANGE}) {
    int lowest = dup(0);
    close(lowest);
    {
      FaultyKernel kernel;
      kernel.decide = [error](Call call, size_t) -> int64_t {
        return call == Call::kSetNote ? -error : 0;
      };
      EXPECT_EQ(Open(process_), -error);
    }
    EXPECT_FALSE(Exists(side_));
    EXPECT_EQ(ReadFile(path_), "old");
    int again = dup(0);
    close(again);
    EXPECT_EQ(again, lowest);
  }
}

TEST_F(WithoutNotesTest, FileThatCannotHaveNotesIsOpened) {
  for (int error : {EOPNOTSUPP, ENOSYS, EPERM}) {
    FaultyKernel kernel;
    kernel.decide = [error](Call call, size_t) -> int64_t {
      return call == Call::kSetNote ? -error : 0;
    };
    EXPECT_EQ(Open(process_), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
  }
}

}  // namespace
