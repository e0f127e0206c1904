// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The writer on systems that fail: full disks, limits, closed descriptors, and
// every system call in turn.

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_system.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/heaplog_writer.h"

extern "C" int heaplog_writer_open_on(const heaplog_system_t *system,
                                      const heaplog_writer_options_t *options,
                                      heaplog_writer_t **out_writer);

namespace {

using heaplog_test::kStartNs;
using heaplog_test::Log;
using heaplog_test::Options;
using heaplog_test::ReadFile;
using heaplog_test::ReadLog;
using heaplog_test::TempPath;
using heaplog_test::WriteFile;

// Longer than the writer leaves a full disk alone.
constexpr uint64_t kRetryNs = 20000000;

// The kernel, but for the calls it is told to fail, counting what is held.
struct FakeSystem {
  static inline int calls;            // Made so far.
  static inline int fail_from;        // The first call that fails; -1: none.
  static inline int fail_count;       // How many fail from there on.
  static inline int descriptors;      // Open.
  static inline int mappings;         // Mapped.
  static inline bool no_fallocate;    // The file system has none.
  static inline bool no_populate;     // A kernel before 5.14.
  static inline bool full;            // The disk.
  static inline std::set<int> marks;  // advice seen

  static void Reset() {
    calls = descriptors = mappings = 0;
    fail_from = -1;
    fail_count = 0;
    no_fallocate = no_populate = full = false;
  }

  static bool Fails() {
    int call = calls++;
    return fail_from >= 0 && call >= fail_from && call < fail_from + fail_count;
  }

  static int Open(const char *path, int flags, unsigned int mode) {
    int fd = Fails() ? -EMFILE : heaplog_system_kernel.open(path, flags, mode);
    descriptors += fd >= 0;
    return fd;
  }

  static int Close(int fd) {
    descriptors--;
    return heaplog_system_kernel.close(fd);
  }

  static int Unlink(const char *path) {
    return heaplog_system_kernel.unlink(path);
  }

  static int Stat(int fd, struct stat *out_stat) {
    return Fails() ? -EIO : heaplog_system_kernel.stat(fd, out_stat);
  }

  static int Duplicate(int fd, int lowest) {
    int high = Fails() ? -EMFILE : heaplog_system_kernel.duplicate(fd, lowest);
    descriptors += high >= 0;
    return high;
  }

  static int Allocate(int fd, uint64_t offset, uint64_t size) {
    if (no_fallocate) {
      return -EOPNOTSUPP;
    }
    return Fails() || full ? -ENOSPC
                           : heaplog_system_kernel.allocate(fd, offset, size);
  }

  static int64_t Read(int fd, void *bytes, size_t size, uint64_t offset) {
    return Fails() ? -EIO : heaplog_system_kernel.read(fd, bytes, size, offset);
  }

  static int64_t Write(int fd, const void *bytes, size_t size,
                       uint64_t offset) {
    return Fails() ? -EIO
                   : heaplog_system_kernel.write(fd, bytes, size, offset);
  }

  static void *MapFile(int fd, uint64_t offset, size_t size, int *out_status) {
    if (Fails()) {
      *out_status = -ENOMEM;
      return nullptr;
    }
    void *memory = heaplog_system_kernel.map_file(fd, offset, size, out_status);
    mappings += memory != nullptr;
    return memory;
  }

  static void *MapMemory(size_t size) {
    void *memory = Fails() ? nullptr : heaplog_system_kernel.map_memory(size);
    mappings += memory != nullptr;
    return memory;
  }

  static void Unmap(void *memory, size_t size) {
    mappings--;
    heaplog_system_kernel.unmap(memory, size);
  }

  static int Advise(void *memory, size_t size, int advice) {
    if (advice == MADV_POPULATE_WRITE && no_populate) {
      return -EINVAL;
    }
    if (advice == MADV_POPULATE_WRITE && full) {
      return -EFAULT;
    }
    return Fails() ? -EINVAL
                   : heaplog_system_kernel.advise(memory, size, advice);
  }

  static int Directory(char *path, size_t capacity) {
    return Fails() ? -ENOENT : heaplog_system_kernel.directory(path, capacity);
  }

  static uint64_t FileSizeLimit() {
    return Fails() ? 0 : heaplog_system_kernel.file_size_limit();
  }

  static const heaplog_system_t *Get() {
    static const heaplog_system_t system = {
        Open,  Close,   Unlink,    Stat,  Duplicate, Allocate,  Read,
        Write, MapFile, MapMemory, Unmap, Advise,    Directory, FileSizeLimit};
    return &system;
  }
};

class HeaplogChunkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FakeSystem::Reset();
  }

  void TearDown() override {
    Close();
    EXPECT_EQ(FakeSystem::descriptors, 0);
    EXPECT_EQ(FakeSystem::mappings, 0);
    unlink(path_.c_str());
  }

  void Open() {
    ASSERT_EQ(heaplog_writer_open_on(FakeSystem::Get(), &options_, &writer_),
              0);
    ASSERT_EQ(heaplog_stream_open(writer_, kStartNs, 1, "t", &stream_), 0);
  }

  void Close() {
    heaplog_writer_close(writer_);
    writer_ = nullptr;
  }

  // Appends `count` events; returns how many were taken.
  uint64_t Append(uint64_t count) {
    uint64_t taken = 0;
    for (uint64_t i = 0; i < count; i++) {
      // Far apart, so that a chunk holds few.
      taken += heaplog_append_free(stream_, kStartNs + time_++,
                                   i % 2 * 0x123456789abcdef, 0);
    }
    return taken;
  }

  // Checks that the log has `taken` events and says that `lost` are lost.
  void ExpectLog(uint64_t taken, uint64_t lost) {
    Log log = ReadLog(path_);
    EXPECT_EQ(log.status, 0) << log.error.text;
    uint64_t frees = 0;
    for (const heaplog_event_t &event : log.events) {
      frees += event.kind == HEAPLOG_FREE;
    }
    EXPECT_EQ(frees, taken);
    EXPECT_EQ(log.info.lost_count, lost);
    EXPECT_EQ(heaplog_writer_lost_count(writer_), lost);
  }

  std::string path_ = TempPath("chunk.heaplog");
  heaplog_writer_options_t options_ = Options(path_);
  heaplog_writer_t *writer_ = nullptr;
  heaplog_stream_t *stream_ = nullptr;
  uint64_t time_ = 0;
};

TEST_F(HeaplogChunkTest, FullDiskLosesAndCountsAndGoesOn) {
  Open();
  uint64_t taken = Append(10000);
  EXPECT_EQ(taken, 10000u);
  EXPECT_EQ(heaplog_writer_error(writer_), 0);
  FakeSystem::full = true;
  taken += Append(20000);
  EXPECT_LT(taken, 30000u);
  EXPECT_EQ(heaplog_writer_error(writer_), -ENOSPC);
  ExpectLog(taken, 30000 - taken);
  // While full, the disk is asked now and then, not for each event.
  int calls = FakeSystem::calls;
  Append(1000);
  EXPECT_EQ(FakeSystem::calls, calls);
  FakeSystem::full = false;
  time_ += kRetryNs;
  EXPECT_EQ(Append(10000), 10000u);
  taken += 10000;
  uint64_t lost = 41000 - taken;
  ExpectLog(taken, lost);
  EXPECT_EQ(heaplog_writer_error(writer_), -ENOSPC);
  // The place where they are missing is marked with their number.
  uint64_t marked = 0;
  for (const heaplog_event_t &event : ReadLog(path_).events) {
    marked += event.kind == HEAPLOG_LOST ? event.size_bytes : 0;
  }
  EXPECT_EQ(marked, lost);
}

TEST_F(HeaplogChunkTest, DiskFullFromTheStart) {
  FakeSystem::full = true;
  EXPECT_EQ(heaplog_writer_open_on(FakeSystem::Get(), &options_, &writer_),
            -ENOSPC);
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
}

TEST_F(HeaplogChunkTest, DefinitionsAreNotCountedAsLostEvents) {
  Open();
  FakeSystem::full = true;
  EXPECT_FALSE(heaplog_append_stack(stream_, 1, 0, 5));
  EXPECT_FALSE(heaplog_append_process(stream_, "x", "", 0));
  EXPECT_FALSE(heaplog_append_module_unload(stream_, kStartNs, 5));
  EXPECT_EQ(heaplog_writer_lost_count(writer_), 0u);
  EXPECT_EQ(heaplog_writer_error(writer_), -ENOSPC);
}

// A file system without fallocate: the file is extended and the pages are
// faulted in by a call that reports a full disk instead of raising SIGBUS.
TEST_F(HeaplogChunkTest, WorksWithoutFallocate) {
  FakeSystem::no_fallocate = true;
  Open();
  uint64_t taken = Append(20000);
  EXPECT_EQ(taken, 20000u);
  FakeSystem::full = true;
  taken += Append(20000);
  EXPECT_EQ(heaplog_writer_error(writer_), -ENOSPC);
  FakeSystem::full = false;
  time_ += kRetryNs;
  taken += Append(20000);
  ExpectLog(taken, 60000 - taken);
}

TEST_F(HeaplogChunkTest, RefusesToRiskSigbus) {
  FakeSystem::no_fallocate = true;
  FakeSystem::no_populate = true;
  EXPECT_EQ(heaplog_writer_open_on(FakeSystem::Get(), &options_, &writer_),
            -EOPNOTSUPP);
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
}

TEST_F(HeaplogChunkTest, OlderKernelWithFallocateIsFine) {
  FakeSystem::no_populate = true;
  Open();
  EXPECT_EQ(Append(30000), 30000u);
  ExpectLog(30000, 0);
}

// With the true kernel: SIGXFSZ would end the test.
TEST_F(HeaplogChunkTest, FileSizeLimitRaisesNoSignal) {
  rlimit old_limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  ASSERT_EQ(heaplog_writer_open(&options_, &writer_), 0);
  ASSERT_EQ(heaplog_stream_open(writer_, kStartNs, 1, "t", &stream_), 0);
  // Only to what a test's output will not reach.
  constexpr uint64_t kLimit = 64 << 20;
  rlimit limit = {kLimit, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  uint64_t taken = 0;
  uint64_t tried = 0;
  while (heaplog_writer_error(writer_) == 0 && tried < 20000000) {
    taken += Append(10000);
    tried += 10000;
  }
  EXPECT_EQ(heaplog_writer_error(writer_), -EFBIG);
  EXPECT_EQ(heaplog_writer_lost_count(writer_), tried - taken);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  time_ += kRetryNs;
  taken += Append(1000);
  ExpectLog(taken, tried + 1000 - taken);
  heaplog_writer_close(writer_);
  writer_ = nullptr;
}

// The number of the descriptor that is open on the log.
int LogDescriptor(const std::string &path) {
  struct stat log;
  EXPECT_EQ(stat(path.c_str(), &log), 0);
  for (int fd = 0; fd < 5000; fd++) {
    struct stat other;
    if (fstat(fd, &other) == 0 && other.st_ino == log.st_ino &&
        other.st_dev == log.st_dev) {
      return fd;
    }
  }
  return -1;
}

TEST_F(HeaplogChunkTest, DescriptorIsOutOfTheProgramsWay) {
  Open();
  EXPECT_GE(LogDescriptor(path_), 1000);
  EXPECT_NE(fcntl(LogDescriptor(path_), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(HeaplogChunkTest, SurvivesTheProgramClosingItsDescriptor) {
  Open();
  ASSERT_EQ(Append(1000), 1000u);
  int fd = LogDescriptor(path_);
  ASSERT_EQ(close(fd), 0);
  FakeSystem::descriptors--;
  EXPECT_EQ(Append(20000), 20000u);
  ExpectLog(21000, 0);
}

TEST_F(HeaplogChunkTest, NeverWritesToAFileThatTookItsNumber) {
  Open();
  ASSERT_EQ(Append(1000), 1000u);
  std::string stranger = TempPath("stranger");
  WriteFile(stranger, "mine");
  int fd = LogDescriptor(path_);
  int other = open(stranger.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(dup2(other, fd), fd);
  FakeSystem::descriptors--;
  EXPECT_EQ(Append(20000), 20000u);
  ExpectLog(21000, 0);
  Close();
  EXPECT_EQ(ReadFile(stranger), "mine");
  // And has not closed it.
  EXPECT_EQ(fcntl(fd, F_GETFD), 0);
  close(fd);
  close(other);
  unlink(stranger.c_str());
}

TEST_F(HeaplogChunkTest, UnlinkedAndClosedLogIsGivenUp) {
  Open();
  ASSERT_EQ(close(LogDescriptor(path_)), 0);
  FakeSystem::descriptors--;
  ASSERT_EQ(unlink(path_.c_str()), 0);
  Append(20000);
  EXPECT_EQ(heaplog_writer_error(writer_), -ENOENT);
  WriteFile(path_, "another file of that name");
  time_ += kRetryNs;
  Append(20000);
  EXPECT_EQ(ReadFile(path_), "another file of that name");
}

// The program scribbles over the log's mapped header.
TEST_F(HeaplogChunkTest, BrokenCountIsNotBelieved) {
  Open();
  ASSERT_EQ(Append(10), 10u);
  int fd = open(path_.c_str(), O_RDWR | O_CLOEXEC);
  const uint64_t nonsense = 0x123456789;
  ASSERT_EQ(pwrite(fd, &nonsense, 8, 64), 8);
  close(fd);
  Append(20000);
  EXPECT_EQ(heaplog_writer_error(writer_), -EPROTO);
}

// Every call of a run fails once, then all from there on.
TEST_F(HeaplogChunkTest, EverySystemCallMayFail) {
  auto run = [&] {
    time_ = 0;
    uint64_t taken = 0;
    int status = heaplog_writer_open_on(FakeSystem::Get(), &options_, &writer_);
    if (status != 0) {
      EXPECT_LT(status, 0);
      return;
    }
    for (int i = 0; i < 3; i++) {
      status = heaplog_stream_open(writer_, kStartNs, 1, "t", &stream_);
      if (status != 0) {
        EXPECT_EQ(status, -ENOMEM);
        continue;
      }
      taken += Append(9000);
      heaplog_stream_close(stream_, kStartNs + time_);
      time_ += kRetryNs;
    }
    // What came back from each append is what the log says.
    ExpectLog(taken, heaplog_writer_lost_count(writer_));
    FakeSystem::fail_from = -1;
    Close();
  };
  run();
  const int calls = FakeSystem::calls;
  EXPECT_GT(calls, 20);
  for (int count : {1, 1000000}) {
    for (int i = 0; i < calls; i++) {
      SCOPED_TRACE("call " + std::to_string(i));
      FakeSystem::Reset();
      FakeSystem::fail_from = i;
      FakeSystem::fail_count = count;
      run();
      ASSERT_EQ(FakeSystem::mappings, 0);
      ASSERT_EQ(FakeSystem::descriptors, 0);
    }
  }
  FakeSystem::Reset();
}

}  // namespace
