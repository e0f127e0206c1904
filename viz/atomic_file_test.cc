// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/atomic_file.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace viz {
namespace {

class AtomicFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::string(getenv("TEST_TMPDIR")) + "/folder.XXXXXX";
    ASSERT_NE(mkdtemp(&folder_[0]), nullptr);
    path_ = folder_ + "/out.html";
  }

  static std::string Read(const std::string &path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }

  int FilesInFolder() const {
    int count = 0;
    DIR *folder = opendir(folder_.c_str());
    while (const dirent *entry = readdir(folder)) {
      count += entry->d_name[0] != '.';
    }
    closedir(folder);
    return count;
  }

  std::string folder_;
  std::string path_;
};

TEST_F(AtomicFileTest, WritesANewFileAsTheShellWould) {
  const mode_t old = umask(027);
  ASSERT_TRUE(WriteFileAtomically(path_, "hello").ok());
  umask(old);
  EXPECT_EQ(Read(path_), "hello");
  struct stat info;
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
  EXPECT_EQ(FilesInFolder(), 1);
}

TEST_F(AtomicFileTest, ReplacesAndKeepsTheMode) {
  std::ofstream(path_) << "something longer than what follows";
  ASSERT_EQ(chmod(path_.c_str(), 0600), 0);
  ASSERT_TRUE(WriteFileAtomically(path_, "new").ok());
  EXPECT_EQ(Read(path_), "new");
  struct stat info;
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(AtomicFileTest, WhoReadsTheOldFileGoesOnReadingIt) {
  std::ofstream(path_) << "old";
  std::ifstream reader(path_);
  ASSERT_TRUE(WriteFileAtomically(path_, "new").ok());
  std::string text;
  reader >> text;
  EXPECT_EQ(text, "old");
}

TEST_F(AtomicFileTest, FolderThatIsNotThereIsAnError) {
  const absl::Status status =
      WriteFileAtomically(folder_ + "/no/out.html", "x");
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("/no/out.html"), std::string::npos);
  EXPECT_NE(status.message().find("No such file"), std::string::npos);
}

TEST_F(AtomicFileTest, FolderInTheWayIsAnError) {
  ASSERT_EQ(mkdir(path_.c_str(), 0700), 0);
  EXPECT_FALSE(WriteFileAtomically(path_, "x").ok());
  EXPECT_EQ(FilesInFolder(), 1);
}

TEST_F(AtomicFileTest, DeviceIsWrittenToAndStays) {
  ASSERT_TRUE(WriteFileAtomically("/dev/null", "x").ok());
  struct stat info;
  ASSERT_EQ(stat("/dev/null", &info), 0);
  EXPECT_TRUE(S_ISCHR(info.st_mode));
  // Always full.
  EXPECT_FALSE(WriteFileAtomically("/dev/full", "x").ok());
}

TEST_F(AtomicFileTest, PlacesThatCannotBeWrittenToAreToldBefore) {
  EXPECT_TRUE(CheckIsWritable(path_).ok());
  EXPECT_TRUE(CheckIsWritable("relative.html").ok());
  EXPECT_TRUE(CheckIsWritable("/dev/null").ok());
  std::ofstream(path_) << "a file";
  EXPECT_TRUE(CheckIsWritable(path_).ok());
  EXPECT_FALSE(CheckIsWritable(folder_).ok());
  EXPECT_FALSE(CheckIsWritable(folder_ + "/none/out.html").ok());
  EXPECT_FALSE(CheckIsWritable(path_ + "/out.html").ok());
  EXPECT_FALSE(CheckIsWritable("").ok());
  EXPECT_EQ(FilesInFolder(), 1);
}

}  // namespace
}  // namespace viz
