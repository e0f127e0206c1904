// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Private heaps in a file: that cannot grow, that is interrupted while it does,
// that somebody else writes to, that a forked child has too.

#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fit.h"
#include "heap/heap_testing.h"
#include "heap/kernel.h"
#include "heap/private_heap.h"
#include "heap/private_heap_testing.h"

namespace {
// What the next calls of posix_fallocate() fail with, and how many.
int fallocate_error = 0;
int fallocate_failures = 0;
}  // namespace

// Instead of libc's.
extern "C" int posix_fallocate(int file, off_t offset, off_t length) {
  if (fallocate_failures > 0) {
    --fallocate_failures;
    return fallocate_error;
  }
  return fallocate(file, 0, offset, length) == 0 ? 0 : errno;
}

namespace {

using heap_testing::CapturedStderr;
using heap_testing::Create;
using heap_testing::Fill;
using heap_testing::Heap;
using heap_testing::IsFilled;
using heap_testing::KeepsLinksInFreeBlocks;
using heap_testing::kStrategies;
using heap_testing::Options;
using heap_testing::Random;
using heap_testing::RunInChild;
using heap_testing::Stats;

class PrivateHeapFileTest : public testing::TestWithParam<heap_strategy_t> {
 protected:
  // Options of a heap in `file`.
  static heap_options_t InFile(int file) {
    heap_options_t options = Options(GetParam());
    options.use_file = true;
    options.file = file;
    options.limit_bytes = size_t{16} << 20;
    return options;
  }
  static int MemoryFile() {
    const int file = memfd_create("file_test", MFD_CLOEXEC);
    EXPECT_GE(file, 0);
    return file;
  }
};

INSTANTIATE_TEST_SUITE_P(Strategies, PrivateHeapFileTest,
                         testing::ValuesIn(kStrategies));

void FillUp(heap_t *heap, std::vector<void *> *blocks) {
  while (void *ptr = heap_alloc_in(heap, 10000)) {
    Fill(ptr, 10000, blocks->size());
    blocks->push_back(ptr);
  }
  EXPECT_EQ(errno, ENOMEM);
}

// The heap is whole when the file can grow no more.
void ExpectWhole(heap_t *heap, const std::vector<void *> &blocks) {
  EXPECT_GT(blocks.size(), 5u);
  EXPECT_STREQ(heap_check_in(heap), nullptr);
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_TRUE(IsFilled(blocks[i], 10000, 10000, i));
    heap_free_in(heap, blocks[i]);
  }
  EXPECT_NE(heap_alloc_in(heap, 10000), nullptr);
  EXPECT_STREQ(heap_check_in(heap), nullptr);
}

TEST_P(PrivateHeapFileTest, GrowsUntilItIsTooLong) {
  RunInChild([] {
    const rlimit limit = {1000000, 1000000};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    heap_options_t options = Options(GetParam());
    options.use_file = true;
    options.file = memfd_create("file_test", MFD_CLOEXEC);
    ASSERT_GE(options.file, 0);
    const Heap heap = Create(options);
    std::vector<void *> blocks;
    FillUp(heap.get(), &blocks);
    EXPECT_LE(Stats(heap).mapped_bytes, 1000000u);
    ExpectWhole(heap.get(), blocks);
  });
}

// Growth is generous only where there is room for it: nothing is sent SIGXFSZ.
TEST_P(PrivateHeapFileTest, GrowsByLessWhereTheLimitIsNear) {
  RunInChild([] {
    const Heap heap = Create(InFile(MemoryFile()));
    ASSERT_NE(heap_alloc_in(heap.get(), size_t{8} << 20), nullptr);
    const size_t used = Stats(heap).mapped_bytes;
    // An eighth would be 1 MiB more.
    const rlimit limit = {used + (256 << 10), used + (256 << 10)};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    EXPECT_NE(heap_alloc_in(heap.get(), 65536), nullptr);
    EXPECT_EQ(Stats(heap).mapped_bytes, used + 65536);
    EXPECT_EQ(heap_alloc_in(heap.get(), 1 << 20), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  });
}

bool IsBusy(heap_options_t options, int file) {
  options.file = file;
  errno = 0;
  Heap heap(heap_create(&options));
  return heap == nullptr && errno == EBUSY;
}

int Reopen(int file) {
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  return open(path.c_str(), O_RDWR | O_CLOEXEC);
}

TEST_P(PrivateHeapFileTest, FileIsOneHeapsAlone) {
  const int file = MemoryFile();
  const int again = Reopen(file);
  ASSERT_GE(again, 0);
  const heap_options_t options = InFile(file);
  Heap heap = Create(options);
  void *ptr = heap_alloc_in(heap.get(), 1000);
  Fill(ptr, 1000, 1);
  for (int round = 0; round < 2; ++round) {  // Refusal changes nothing.
    EXPECT_TRUE(IsBusy(options, file));
    EXPECT_TRUE(IsBusy(options, again));
  }
  RunInChild([&] {
    EXPECT_TRUE(IsBusy(options, file)) << "it is the parent's";
    heap.reset();
    EXPECT_TRUE(IsBusy(options, again)) << "still";
    EXPECT_TRUE(IsBusy(options, file)) << "by the inherited descriptor, too";
  });
  // Another process, which knows of the lock alone.
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  EXPECT_EQ(fcntl(again, F_OFD_GETLK, &lock), 0);
  EXPECT_EQ(lock.l_type, F_WRLCK) << "the child did not give it up";
  EXPECT_TRUE(IsFilled(ptr, 1000, 1000, 1));
  heap.reset();
  EXPECT_FALSE(IsBusy(options, again)) << "though `file` is open";
  EXPECT_FALSE(IsBusy(options, file));
  lock = {};
  lock.l_type = F_WRLCK;
  ASSERT_EQ(fcntl(again, F_OFD_SETLK, &lock), 0);
  EXPECT_TRUE(IsBusy(options, file)) << "somebody else's";
  EXPECT_TRUE(IsBusy(options, again)) << "a lock of the caller's is no heap's";
  EXPECT_EQ(close(again), 0);
  EXPECT_EQ(close(file), 0);
}

TEST_P(PrivateHeapFileTest, OnlyRegularFilesCanGrow) {
  for (const char *path : {"/dev/zero", "/dev/null"}) {
    const int file = open(path, O_RDWR | O_CLOEXEC);
    const heap_options_t options = InFile(file);
    errno = 0;
    EXPECT_EQ(heap_create(&options), nullptr);
    EXPECT_EQ(errno, ENODEV);
    EXPECT_EQ(close(file), 0);
  }
}

// Its own descriptor: closed by exec and by heap_destroy.
TEST_P(PrivateHeapFileTest, DescriptorLivesAsLongAsTheHeap) {
  const int file = MemoryFile();
  Heap heap = Create(InFile(file));
  const int own = heap->options.file;
  EXPECT_NE(own, file);
  EXPECT_EQ(fcntl(own, F_GETFD), FD_CLOEXEC);
  heap.reset();
  EXPECT_EQ(fcntl(own, F_GETFD), -1);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(close(file), 0);
}

TEST_P(PrivateHeapFileTest, GrowsUntilItIsSealed) {
  heap_options_t options = Options(GetParam());
  options.use_file = true;
  options.file = memfd_create("file_test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(options.file, 1000000), 0);
  ASSERT_EQ(fcntl(options.file, F_ADD_SEALS, F_SEAL_GROW), 0);
  const Heap heap = Create(options);
  std::vector<void *> blocks;
  FillUp(heap.get(), &blocks);
  ExpectWhole(heap.get(), blocks);
  EXPECT_EQ(close(options.file), 0);
}

// A reservation that begins between two multiples of the alignment.
TEST_P(PrivateHeapFileTest, BlocksAreAlignedLikeOthers) {
  RunInChild([] {
    static heap_kernel_t kernel = heap_kernel_default;
    kernel.map = [](size_t size_bytes, bool reserve_only) -> void * {
      void *ptr = heap_kernel_default.map(size_bytes + 131072, reserve_only);
      if (ptr == nullptr || !reserve_only) {
        return ptr;
      }
      const uintptr_t up = (reinterpret_cast<uintptr_t>(ptr) + 65535) / 65536;
      return reinterpret_cast<void *>(up * 65536 + 4096);
    };
    heap_kernel = &kernel;
    const int file = MemoryFile();
    const Heap heap = Create(InFile(file));
    ASSERT_EQ(reinterpret_cast<uintptr_t>(heap->reservation) % 65536, 4096u);
    void *ptr = heap_aligned_alloc_in(heap.get(), 65536, 65536);
    ASSERT_NE(ptr, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(ptr) % 65536, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(ptr), heap->base);
    Fill(ptr, 65536, 3);
    std::vector<unsigned char> copy(65536);
    EXPECT_EQ(pread(file, copy.data(), copy.size(), 0), 65536);
    EXPECT_TRUE(IsFilled(copy.data(), 65536, 65536, 3))
        << "at the file's start";
  });
}

TEST_P(PrivateHeapFileTest, InterruptedGrowthIsTriedAgain) {
  const Heap heap = Create(InFile(MemoryFile()));
  fallocate_error = EINTR;
  fallocate_failures = 5;
  void *ptr = heap_alloc_in(heap.get(), 100000);
  EXPECT_NE(ptr, nullptr);
  EXPECT_EQ(fallocate_failures, 0);
  Fill(ptr, 100000, 1);
  // Any other failure is one: of the longer step, and of what is needed.
  fallocate_error = EIO;
  fallocate_failures = 2;
  EXPECT_EQ(heap_alloc_in(heap.get(), 1000000), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_EQ(fallocate_failures, 0);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  EXPECT_NE(heap_alloc_in(heap.get(), 1000000), nullptr);
  EXPECT_TRUE(IsFilled(ptr, 100000, 100000, 1));
}

constexpr int kNoFileSystem = 77;

bool WriteTo(const char *path, const std::string &text) {
  const int file = open(path, O_WRONLY | O_CLOEXEC);
  const bool is_written = file >= 0 && write(file, text.data(), text.size()) ==
                                           static_cast<ssize_t>(text.size());
  return close(file) == 0 && is_written;
}

// Exits with kNoFileSystem when no file system can be mounted.
void EnterSmallFileSystem(const std::string &folder) {
  const std::string uid = std::to_string(getuid());
  const std::string gid = std::to_string(getgid());
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0 ||
      !WriteTo("/proc/self/setgroups", "deny") ||
      !WriteTo("/proc/self/uid_map", uid + " " + uid + " 1") ||
      !WriteTo("/proc/self/gid_map", gid + " " + gid + " 1") ||
      mount("none", folder.c_str(), "tmpfs", 0, "size=1m") != 0) {
    _exit(kNoFileSystem);
  }
}

TEST_P(PrivateHeapFileTest, GrowsUntilTheFileSystemIsFull) {
  std::string folder = testing::TempDir() + "file_testXXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    EnterSmallFileSystem(folder);
    const Heap heap = Create(InFile(
        open((folder + "/heap").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)));
    std::vector<void *> blocks;
    FillUp(heap.get(), &blocks);
    EXPECT_LE(Stats(heap).mapped_bytes, size_t{1} << 20);
    // Of the MiB all but a last step of growth is used.
    EXPECT_GE(Stats(heap).mapped_bytes, size_t{15} << 16);
    ExpectWhole(heap.get(), blocks);
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(rmdir(folder.c_str()), 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoFileSystem) {
    GTEST_SKIP() << "no file system can be mounted here";
  }
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// Who can write to the file can write links that look right: two free pieces
// that lead to each other and to themselves, through the file.
TEST_P(PrivateHeapFileTest, MisleadingLinksInTheFileHarmNoBlock) {
  if (!KeepsLinksInFreeBlocks(GetParam())) {
    GTEST_SKIP() << "keeps nothing in free blocks";
  }
  setenv("HEAP_ON_ERROR", "report", 1);
  const auto number = [](const Heap &heap, void *ptr) {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(ptr) - heap->base;
    return static_cast<uint32_t>(offset / 16);
  };
  int found = 0;
  for (unsigned round = 0; round < 2 * 81; ++round) {
    const int file = MemoryFile();
    heap_options_t options = InFile(file);
    options.single_threaded = round >= 81;
    const Heap heap = Create(options);
    // Pieces of different lists, with live blocks between.
    std::vector<void *> live;
    std::vector<void *> pieces;
    for (const size_t size : {64, 200, 1000, 64, 4000, 200}) {
      pieces.push_back(heap_alloc_in(heap.get(), size));
      live.push_back(heap_alloc_in(heap.get(), 48));
      Fill(live.back(), 48, live.size());
    }
    for (void *ptr : pieces) {
      heap_free_in(heap.get(), ptr);
    }
    const uint32_t first = number(heap, pieces[0]);
    const uint32_t second = number(heap, pieces[2]);
    // Each of the four links leads nowhere, to the one, or to the other.
    const uint32_t ends[] = {0, first + 1, second + 1};
    const heap_fit_links_t links[] = {
        {ends[round % 3], ends[round / 3 % 3]},
        {ends[round / 9 % 3], ends[round / 27 % 3]}};
    CapturedStderr captured;
    EXPECT_EQ(pwrite(file, &links[0], sizeof(links[0]), first * off_t{16}), 8);
    EXPECT_EQ(pwrite(file, &links[1], sizeof(links[1]), second * off_t{16}), 8);
    std::vector<void *> more;
    for (const size_t size : {1000, 64, 200, 64, 4000, 200, 1000, 30}) {
      more.push_back(heap_alloc_in(heap.get(), size));
      ASSERT_NE(more.back(), nullptr);
      Fill(more.back(), size, 100 + more.size());
    }
    for (size_t i = 0; i < live.size(); ++i) {
      EXPECT_TRUE(IsFilled(live[i], 48, 48, i + 1)) << round;
      heap_free_in(heap.get(), live[i]);
    }
    for (void *ptr : more) {
      heap_free_in(heap.get(), ptr);
    }
    const std::string text = captured.Take();
    found += text.find("free block was written to") != std::string::npos;
    EXPECT_EQ(Stats(heap).num_live, 0u) << round << text;
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr) << round << text;
    EXPECT_EQ(close(file), 0);
  }
  unsetenv("HEAP_ON_ERROR");
  EXPECT_GT(found, 80);
}

// The file is shared, the tables are not: one of the two may go on.
TEST_P(PrivateHeapFileTest, ForkedChildMayGoOnInstead) {
  const int file = MemoryFile();
  Heap heap = Create(InFile(file));
  void *ptr = heap_alloc_in(heap.get(), 1000);
  void *freed = heap_alloc_in(heap.get(), 5000);
  heap_free_in(heap.get(), freed);
  Fill(ptr, 1000, 1);
  RunInChild([&] {
    Random random(7);
    EXPECT_TRUE(IsFilled(ptr, 1000, 1000, 1));
    for (int i = 0; i < 1000; ++i) {
      void *other = heap_alloc_in(heap.get(), random.Below(2000));
      ASSERT_NE(other, nullptr);
      if (i % 2 == 0) {
        heap_free_in(heap.get(), other);
      }
    }
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    Fill(ptr, 1000, 2);
  });
  EXPECT_TRUE(IsFilled(ptr, 1000, 1000, 2)) << "it is the same memory";
  heap.reset();
  EXPECT_EQ(close(file), 0);
}

TEST_P(PrivateHeapFileTest, ParentGoesOnWhenTheChildOnlyLooks) {
  const int file = MemoryFile();
  const Heap heap = Create(InFile(file));
  void *ptr = heap_alloc_in(heap.get(), 1000);
  Fill(ptr, 1000, 1);
  RunInChild([&] {
    EXPECT_TRUE(IsFilled(ptr, 1000, 1000, 1));
    EXPECT_EQ(heap_usable_size_in(heap.get(), ptr) >= 1000, true);
  });
  for (int i = 0; i < 1000; ++i) {
    ASSERT_NE(heap_alloc_in(heap.get(), 500), nullptr);
  }
  heap_free_in(heap.get(), ptr);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  EXPECT_EQ(close(file), 0);
}

}  // namespace
