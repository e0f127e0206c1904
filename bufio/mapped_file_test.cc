// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>

#include "bufio/bufio_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::FaultyKernel;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::Seed;
using bufio_testing::TempPath;
using bufio_testing::ToString;
using bufio_testing::WriteFile;

class MappedFileTest : public testing::Test {
 protected:
  MappedFileTest() {
    options_.writable = true;
    options_.create = true;
  }

  ~MappedFileTest() override {
    bufio_mapped_file_close(file_);
    unlink(path_.c_str());
  }

  void Open() {
    ASSERT_EQ(bufio_mapped_file_open(path_.c_str(), &options_, &file_), 0);
  }

  int Close() {
    int status = bufio_mapped_file_close(file_);
    file_ = nullptr;
    return status;
  }

  std::string path_ = TempPath("mapped");
  bufio_mapped_file_options_t options_ = {};
  bufio_mapped_file_t *file_ = nullptr;
};

TEST_F(MappedFileTest, WhatCannotBeOpenedSaysSo) {
  EXPECT_EQ(bufio_mapped_file_open("/no/such", nullptr, &file_), -ENOENT);
  EXPECT_EQ(bufio_mapped_file_open("/tmp", nullptr, &file_), -EINVAL);
  EXPECT_EQ(bufio_mapped_file_open("/dev/null", nullptr, &file_), -EINVAL);
  options_.writable = false;
  EXPECT_EQ(bufio_mapped_file_open(path_.c_str(), &options_, &file_), -EINVAL);
  EXPECT_EQ(bufio_mapped_file_close(nullptr), 0);
}

TEST_F(MappedFileTest, WholeFileIsOneView) {
  WriteFile(path_, Pattern(0, 100000));
  options_ = {};
  Open();
  bufio_slice_t view = {};
  ASSERT_EQ(bufio_mapped_file_view(file_, 0, SIZE_MAX, &view), 0);
  EXPECT_EQ(ToString(view), Pattern(0, 100000));
  ASSERT_EQ(bufio_mapped_file_view(file_, 99990, 100, &view), 0);
  EXPECT_EQ(ToString(view), Pattern(99990, 10));
  ASSERT_EQ(bufio_mapped_file_view(file_, 100000, 100, &view), 0);
  EXPECT_EQ(view.len, 0u);
  unsigned char *bytes;
  EXPECT_EQ(bufio_mapped_file_reserve(file_, 0, 1, &bytes), -EROFS);
  EXPECT_EQ(Close(), 0);
}

TEST_F(MappedFileTest, WindowsSlide) {
  WriteFile(path_, Pattern(0, 1 << 20));
  options_ = {};
  options_.window_bytes = 8192;
  options_.advice = BUFIO_MAPPED_RANDOM;
  Open();
  std::mt19937_64 random(Seed());
  for (int i = 0; i < 1000; i++) {
    uint64_t offset = random() % (1 << 20);
    size_t len = random() % (random() % 8 == 0 ? 100000 : 500);
    bufio_slice_t view = {};
    ASSERT_EQ(bufio_mapped_file_view(file_, offset, len, &view), 0);
    len = std::min<size_t>(len, (1 << 20) - offset);
    ASSERT_EQ(ToString(view), Pattern(offset, len));
    ASSERT_EQ(
        bufio_mapped_file_advise(file_, offset, len, BUFIO_MAPPED_WILL_NEED),
        0);
  }
}

TEST_F(MappedFileTest, FilesOfMoreThanFourGigabytes) {
  options_.window_bytes = 1 << 16;
  int descriptor = open(path_.c_str(), O_RDWR | O_CREAT, 0600);
  const uint64_t far = uint64_t{6} << 30;
  ASSERT_EQ(pwrite(descriptor, "far", 3, static_cast<off_t>(far)), 3);
  close(descriptor);
  Open();
  bufio_slice_t view = {};
  ASSERT_EQ(bufio_mapped_file_view(file_, far - 5, 100, &view), 0);
  EXPECT_EQ(ToString(view), std::string("\0\0\0\0\0far", 8));
}

TEST_F(MappedFileTest, AppendedFileEndsExactly) {
  for (size_t window : {0, 4096, 65536}) {
    options_.window_bytes = window;
    options_.growth_bytes = 10000;
    options_.truncate = true;
    Open();
    std::string expected;
    std::mt19937_64 random(Seed());
    for (int i = 0; i < 300; i++) {
      std::string bytes = Pattern(expected.size(), random() % 1000);
      ASSERT_EQ(bufio_mapped_file_append(file_, bytes.data(), bytes.size()), 0);
      expected += bytes;
      ASSERT_EQ(bufio_mapped_file_size(file_), expected.size());
    }
    ASSERT_EQ(bufio_mapped_file_sync(file_), 0);
    EXPECT_EQ(Close(), 0);
    EXPECT_EQ(ReadFile(path_), expected);
  }
}

// Random writes, growth and cuts against a string.
TEST_F(MappedFileTest, AgreesWithAString) {
  options_.window_bytes = 8192;
  options_.growth_bytes = 5000;
  Open();
  std::string model;
  std::mt19937_64 random(Seed());
  for (int i = 0; i < 3000; i++) {
    size_t offset = random() % (model.size() + 2000);
    size_t len = random() % 300;
    switch (random() % 4) {
      case 0:
      case 1: {
        std::string bytes = Pattern(random(), len);
        unsigned char *target = nullptr;
        ASSERT_EQ(bufio_mapped_file_reserve(file_, offset, len, &target), 0);
        if (len != 0) {
          memcpy(target, bytes.data(), len);
          model.resize(std::max(model.size(), offset + len));
          model.replace(offset, len, bytes);
        }
        break;
      }
      case 2: {
        std::string bytes(len, '\0');
        size_t count = 0;
        ASSERT_EQ(bufio_mapped_file_read(file_, offset, &bytes[0], len, &count),
                  0);
        ASSERT_EQ(bytes.substr(0, count),
                  offset < model.size() ? model.substr(offset, len) : "");
        break;
      }
      default:
        if (random() % 20 == 0) {
          ASSERT_EQ(bufio_mapped_file_set_size(file_, offset), 0);
          model.resize(offset);
        }
        break;
    }
    ASSERT_EQ(bufio_mapped_file_size(file_), model.size());
  }
  EXPECT_EQ(Close(), 0);
  EXPECT_EQ(ReadFile(path_), model);
}

// ---- somebody else's truncation ----

TEST_F(MappedFileTest, TruncationBySomebodyElseIsAnErrorNotDeath) {
  WriteFile(path_, Pattern(0, 100000));
  options_ = {};
  Open();
  bufio_slice_t view = {};
  ASSERT_EQ(bufio_mapped_file_view(file_, 0, 100000, &view), 0);
  ASSERT_EQ(truncate(path_.c_str(), 10), 0);
  volatile const unsigned char *bytes = view.data;
  unsigned sum = 0;
  for (size_t i = 4096; i < view.len; i++) {
    sum += bytes[i];
  }
  EXPECT_EQ(sum, 0u);
  EXPECT_EQ(bufio_mapped_file_status(file_), -EIO);
  EXPECT_EQ(bufio_mapped_file_view(file_, 0, 10, &view), -EIO);
  EXPECT_EQ(Close(), -EIO);
  EXPECT_EQ(ReadFile(path_), Pattern(0, 10));
}

TEST_F(MappedFileTest, WritingToWhatSomebodyElseCutIsAnErrorNotDeath) {
  WriteFile(path_, Pattern(0, 100000));
  Open();
  unsigned char *bytes = nullptr;
  ASSERT_EQ(bufio_mapped_file_reserve(file_, 0, 100000, &bytes), 0);
  ASSERT_EQ(truncate(path_.c_str(), 10), 0);
  memset(bytes + 4096, 'x', 90000);
  EXPECT_EQ(bufio_mapped_file_status(file_), -EIO);
  EXPECT_EQ(bufio_mapped_file_sync(file_), -EIO);
  EXPECT_EQ(bufio_mapped_file_append(file_, "x", 1), -EIO);
  EXPECT_EQ(Close(), -EIO);
  EXPECT_EQ(ReadFile(path_), Pattern(0, 10));
}

TEST_F(MappedFileTest, CopyingReadNoticesByItself) {
  WriteFile(path_, Pattern(0, 100000));
  options_ = {};
  Open();
  std::string bytes(100000, '?');
  size_t count = 0;
  ASSERT_EQ(bufio_mapped_file_read(file_, 0, &bytes[0], 100000, &count), 0);
  EXPECT_EQ(bytes, Pattern(0, 100000));
  ASSERT_EQ(truncate(path_.c_str(), 10), 0);
  EXPECT_EQ(bufio_mapped_file_read(file_, 0, &bytes[0], 100000, &count), -EIO);
  EXPECT_EQ(count, 0u);
}

TEST_F(MappedFileTest, CutInsideAPageIsNoticed) {
  WriteFile(path_, Pattern(0, 5000));
  for (bool asks_status : {false, true}) {
    WriteFile(path_, Pattern(0, 5000));
    options_ = {};
    Open();
    ASSERT_EQ(truncate(path_.c_str(), 10), 0);
    std::string bytes(4000, '?');
    size_t count = 1;
    if (asks_status) {
      EXPECT_EQ(bufio_mapped_file_status(file_), -EIO);
      // For ever.
      WriteFile(path_, Pattern(0, 5000));
    }
    EXPECT_EQ(bufio_mapped_file_read(file_, 0, &bytes[0], 4000, &count), -EIO);
    EXPECT_EQ(count, 0u);
    EXPECT_EQ(Close(), -EIO);
  }
}

TEST_F(MappedFileTest, CutFileIsNotMadeLongerAgain) {
  for (int how = 0; how < 4; how++) {
    unlink(path_.c_str());
    options_.growth_bytes = 4096;
    Open();
    ASSERT_EQ(bufio_mapped_file_append(file_, "0123456789", 10), 0);
    ASSERT_EQ(truncate(path_.c_str(), 0), 0);
    if (how == 1) {
      EXPECT_EQ(bufio_mapped_file_sync(file_), -EIO);
    } else if (how == 2) {
      EXPECT_EQ(bufio_mapped_file_set_size(file_, 100000), -EIO);
    } else if (how == 3) {
      unsigned char *bytes = nullptr;
      EXPECT_EQ(bufio_mapped_file_reserve(file_, 100000, 1, &bytes), -EIO);
    }
    EXPECT_EQ(Close(), -EIO);
    EXPECT_EQ(ReadFile(path_), "");
  }
}

TEST_F(MappedFileTest, PaddingGoesWhateverWentWrong) {
  Open();
  ASSERT_EQ(bufio_mapped_file_append(file_, "hello", 5), 0);
  {
    FaultyKernel kernel;
    kernel.decide = [](Call call, size_t) -> int64_t {
      return call == Call::kSync ? -EIO : 0;
    };
    EXPECT_EQ(bufio_mapped_file_sync(file_), -EIO);
  }
  EXPECT_EQ(Close(), -EIO);
  EXPECT_EQ(ReadFile(path_), "hello");
}

TEST_F(MappedFileTest, FaultsElsewhereStillKill) {
  WriteFile(path_, Pattern(0, 100000));
  options_ = {};
  Open();
  pid_t child = fork();
  if (child == 0) {
    (void)!freopen("/dev/null", "w", stderr);
    int descriptor = open(path_.c_str(), O_RDONLY);
    void *memory = mmap(nullptr, 100000, PROT_READ, MAP_SHARED, descriptor, 0);
    (void)!truncate(path_.c_str(), 0);
    volatile const char *bytes = static_cast<const char *>(memory);
    _exit(bytes[50000]);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  // By SIGBUS, or by the exit of a sanitizer's handler, which was there first.
  EXPECT_TRUE(WIFSIGNALED(status) ? WTERMSIG(status) == SIGBUS
                                  : WEXITSTATUS(status) != 0);
}

// ---- a kernel that fails ----

TEST_F(MappedFileTest, FullDiskIsAnErrorAndChangesNothing) {
  options_.growth_bytes = 100000;
  Open();
  ASSERT_EQ(bufio_mapped_file_append(file_, "hello", 5), 0);
  FaultyKernel kernel;
  kernel.decide = [](Call call, size_t) -> int64_t {
    return call == Call::kAllocate ? -ENOSPC : 0;
  };
  unsigned char *bytes = nullptr;
  EXPECT_EQ(bufio_mapped_file_reserve(file_, 500000, 10, &bytes), -ENOSPC);
  EXPECT_EQ(bufio_mapped_file_size(file_), 5u);
  // Cured.
  kernel.decide = nullptr;
  EXPECT_EQ(bufio_mapped_file_reserve(file_, 500000, 10, &bytes), 0);
  EXPECT_EQ(bufio_mapped_file_set_size(file_, 5), 0);
  EXPECT_EQ(Close(), 0);
  EXPECT_EQ(ReadFile(path_), "hello");
}

TEST_F(MappedFileTest, LessThanTheGrowthIsTakenWhereTheDiskHasNoMore) {
  options_.growth_bytes = 100000;
  Open();
  FaultyKernel kernel;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    return call == Call::kAllocate && kernel.count(call) % 2 == 1 ? -ENOSPC : 0;
  };
  EXPECT_EQ(bufio_mapped_file_append(file_, "hello", 5), 0);
  EXPECT_EQ(bufio_mapped_file_append(file_, " world", 6), 0);
  EXPECT_EQ(Close(), 0);
  EXPECT_EQ(ReadFile(path_), "hello world");
}

TEST_F(MappedFileTest, FileSystemWithoutAllocateGetsZeros) {
  options_.growth_bytes = 10000;
  Open();
  FaultyKernel kernel;
  kernel.decide = [](Call call, size_t len) -> int64_t {
    return call == Call::kAllocate               ? -EOPNOTSUPP
           : call == Call::kWriteAt && len > 100 ? 100
                                                 : 0;
  };
  EXPECT_EQ(bufio_mapped_file_append(file_, Pattern(0, 30000).data(), 30000),
            0);
  EXPECT_EQ(Close(), 0);
  EXPECT_EQ(ReadFile(path_), Pattern(0, 30000));
}

TEST_F(MappedFileTest, EveryCallMayFail) {
  options_.window_bytes = 4096;
  options_.growth_bytes = 4096;
  for (int error : {EIO, ENOSPC, ENOMEM}) {
    for (uint64_t failing = 1;; failing++) {
      unlink(path_.c_str());
      FaultyKernel kernel;
      kernel.decide = [&](Call call, size_t) -> int64_t {
        return kernel.calls() == failing && call != Call::kAdvise ? -error : 0;
      };
      std::string model;
      bufio_mapped_file_t *file = nullptr;
      int status = bufio_mapped_file_open(path_.c_str(), &options_, &file);
      int failures = status < 0;
      if (status == 0) {
        for (int i = 0; i < 8; i++) {
          std::string bytes = Pattern(model.size(), 3000);
          status = bufio_mapped_file_append(file, bytes.data(), 3000);
          if (status == 0) {
            model += bytes;
          } else {
            EXPECT_EQ(status, -error);
            failures++;
          }
          ASSERT_EQ(bufio_mapped_file_size(file), model.size());
        }
        int closed = bufio_mapped_file_close(file);
        std::string content = ReadFile(path_);
        content.resize(std::min(content.size(), model.size()));
        EXPECT_EQ(content, model);
        if (closed == 0) {
          EXPECT_EQ(ReadFile(path_), model);
        } else {
          failures++;
        }
      }
      EXPECT_LE(failures, 1);
      if (kernel.calls() < failing) {
        EXPECT_EQ(failures, 0);
        break;
      }
    }
  }
}

TEST_F(MappedFileTest, FailedSyncIsFinal) {
  Open();
  ASSERT_EQ(bufio_mapped_file_append(file_, "hello", 5), 0);
  FaultyKernel kernel;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    return call == Call::kSync && kernel.count(call) == 1 ? -EIO : 0;
  };
  EXPECT_EQ(bufio_mapped_file_sync(file_), -EIO);
  EXPECT_EQ(bufio_mapped_file_sync(file_), -EIO);
  EXPECT_EQ(Close(), -EIO);
}

TEST_F(MappedFileTest, ChildNeitherGrowsNorCutsItsParentsFile) {
  Open();
  ASSERT_EQ(bufio_mapped_file_append(file_, "parent", 6), 0);
  pid_t child = fork();
  if (child == 0) {
    bool good = bufio_mapped_file_append(file_, "child", 5) == -ECHILD &&
                bufio_mapped_file_sync(file_) == -ECHILD;
    bufio_mapped_file_close(file_);
    _exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ASSERT_EQ(bufio_mapped_file_append(file_, " more", 5), 0);
  EXPECT_EQ(Close(), 0);
  EXPECT_EQ(ReadFile(path_), "parent more");
}

}  // namespace
