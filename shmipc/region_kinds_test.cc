// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What is particular to one kind of region: files, memfd, System V.

#include <fcntl.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "shmipc/region.h"
#include "shmipc/region_internal.h"
#include "shmipc/shmipc_testing.h"
#include "shmipc/sysv_internal.h"

namespace {

using shmipc_testing::Name;
using shmipc_testing::NowNs;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;

// -- Files.

std::string PathOf(const std::string &name) {
  return "/dev/shm" + name;
}

TEST(RegionFileTest, ForeignFilesAreNotOpenedNorRemoved) {
  std::string name = Name("foreign");
  std::string path = PathOf(name);
  shmipc_region_t *region;
  for (size_t len : {0, 1, 511, 4096, 65536}) {
    int fd = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
    ASSERT_EQ(ftruncate(fd, static_cast<off_t>(len)), 0);
    EXPECT_EQ(shmipc_region_open(name.c_str(), nullptr, &region), -EPROTO);
    EXPECT_EQ(shmipc_region_unlink(name.c_str(), SHMIPC_POSIX), -EPROTO);
    close(fd);
  }
  unlink(path.c_str());
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(shmipc_region_open(name.c_str(), nullptr, &region), -EPROTO);
  unlink(path.c_str());
}

TEST(RegionFileTest, CutFileIsNoRegion) {
  TestRegion own(SHMIPC_POSIX, 100000);
  struct stat file;
  ASSERT_EQ(stat(PathOf(own.name()).c_str(), &file), 0);
  for (off_t cut : {off_t{4096}, file.st_size - 100000, off_t{100}, off_t{0}}) {
    ASSERT_EQ(truncate(PathOf(own.name()).c_str(), cut), 0);
    int status;
    EXPECT_EQ(own.Attach(&status), nullptr);
    EXPECT_EQ(status, -EPROTO) << cut;
  }
  // For whoever still has it mapped.
  ASSERT_EQ(truncate(PathOf(own.name()).c_str(), file.st_size), 0);
  // Without a header it is not ours to remove any more.
  EXPECT_EQ(unlink(PathOf(own.name()).c_str()), 0);
}

TEST(RegionFileTest, SymbolicLinksAreNotFollowed) {
  TestRegion own(SHMIPC_POSIX, 100);
  std::string name = Name("link");
  ASSERT_EQ(symlink(PathOf(own.name()).c_str(), PathOf(name).c_str()), 0);
  shmipc_region_t *region;
  EXPECT_EQ(shmipc_region_open(name.c_str(), nullptr, &region), -ELOOP);
  EXPECT_EQ(shmipc_region_unlink(name.c_str(), SHMIPC_POSIX), -ELOOP);
  shmipc_region_options_t options = {};
  options.size_bytes = 1;
  EXPECT_EQ(shmipc_region_create(name.c_str(), &options, &region), -EEXIST);
  unlink(PathOf(name).c_str());
}

TEST(RegionFileTest, ModeIs0600OrAsAskedLessTheUmask) {
  for (unsigned int mode : {0u, 0640u, 0666u}) {
    mode_t old = umask(022);
    TestRegion own(SHMIPC_POSIX, 100, [&](auto *o) { o->mode = mode; });
    umask(old);
    struct stat file;
    ASSERT_EQ(stat(PathOf(own.name()).c_str(), &file), 0);
    EXPECT_EQ(file.st_mode & 07777, mode == 0 ? 0600 : mode & ~022u);
  }
}

TEST(RegionFileTest, WithoutTmpfileTheNameStillAppearsWhole) {
  shmipc_no_tmpfile = true;
  TestRegion own(SHMIPC_POSIX, 100);
  shmipc_region_options_t options = own.options();
  shmipc_region_t *second;
  EXPECT_EQ(shmipc_region_create(own.name().c_str(), &options, &second),
            -EEXIST);
  shmipc_no_tmpfile = false;
  int status;
  shmipc_region_close(own.Attach(&status));
  EXPECT_EQ(status, 0);
  struct stat file;
  ASSERT_EQ(stat(PathOf(own.name()).c_str(), &file), 0);
  EXPECT_EQ(file.st_nlink, 1u) << "its first name is still there";
}

// -- memfd.

TEST(RegionMemfdTest, CannotBeCut) {
  TestRegion own(SHMIPC_MEMFD, 100);
  int fd = shmipc_region_share_fd(own.region());
  ASSERT_GE(fd, 0);
  EXPECT_EQ(ftruncate(fd, 10), -1);
  EXPECT_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_EQ(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_SEAL);
  close(fd);
}

TEST(RegionMemfdTest, SealedGrowthIsAnError) {
  TestRegion own(SHMIPC_MEMFD, 100, [](auto *o) {
    o->capacity_bytes = 100000;
    o->seal_growth = true;
  });
  EXPECT_EQ(shmipc_region_grow(own.region(), 90000), -EPERM);
}

TEST(RegionMemfdTest, GoesThroughASocket) {
  TestRegion own(SHMIPC_MEMFD, 100);
  own.data<char>()[0] = 's';
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  Process child([&] {
    own.CloseOwn();
    shmipc_region_t *region;
    int status = shmipc_region_receive(sockets[1], nullptr, &region);
    return status == 0 ? static_cast<char *>(shmipc_region_data(region))[0] : 1;
  });
  EXPECT_EQ(shmipc_region_send(own.region(), sockets[0]), 0);
  EXPECT_EQ(child.Wait(), 's');
  // A message without a descriptor.
  shmipc_region_t *region;
  ASSERT_EQ(write(sockets[0], "x", 1), 1);
  EXPECT_EQ(shmipc_region_receive(sockets[1], nullptr, &region), -EPROTO);
  close(sockets[0]);
  EXPECT_EQ(shmipc_region_receive(sockets[1], nullptr, &region), -EPROTO);
  close(sockets[1]);
}

TEST(RegionMemfdTest, OtherDescriptorsAreRefused) {
  shmipc_region_t *region;
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  EXPECT_EQ(shmipc_region_open_fd(fds[0], nullptr, &region), -EINVAL);
  EXPECT_EQ(shmipc_region_open_fd(-1, nullptr, &region), -EBADF);
  int fd = open("/proc/self/exe", O_RDONLY);
  EXPECT_EQ(shmipc_region_open_fd(fd, nullptr, &region), -EINVAL);
  close(fd);
  // A whole region, but in a memfd that can be cut.
  TestRegion own(SHMIPC_MEMFD, 100);
  size_t len = own.region()->mapped_bytes;
  fd = memfd_create("copy", 0);
  ASSERT_EQ(write(fd, own.region()->base, len), static_cast<ssize_t>(len));
  EXPECT_EQ(shmipc_region_open_fd(fd, nullptr, &region), -EPROTO);
  close(fd);
  close(fds[0]);
  close(fds[1]);
}

// -- System V.

// A segment as its creator left it when it was killed.
void LeaveHalfCreated(const std::string &name, bool has_magic) {
  int id = shmget(shmipc_sysv_key(name.c_str() + 1), 65536,
                  IPC_CREAT | IPC_EXCL | 0600);
  ASSERT_GE(id, 0);
  if (has_magic) {
    auto *header = static_cast<shmipc_header_t *>(shmat(id, nullptr, 0));
    header->magic = SHMIPC_MAGIC;
    shmdt(header);
  }
}

TEST(RegionSysvTest, HalfCreatedOneIsTakenOver) {
  for (bool has_magic : {false, true}) {
    shmipc_region_options_t options = {};
    options.backend = SHMIPC_SYSV;
    options.size_bytes = 100;
    std::string name = Name("half");
    shmipc_region_t *region;
    LeaveHalfCreated(name, has_magic);
    int64_t start = NowNs();
    EXPECT_EQ(shmipc_region_open(name.c_str(), &options, &region), -ENOENT);
    LeaveHalfCreated(name, has_magic);
    ASSERT_EQ(shmipc_region_create(name.c_str(), &options, &region), 0);
    EXPECT_LT(NowNs() - start, 100000000) << "nobody to wait for";
    EXPECT_EQ(Problems(region), "");
    shmipc_region_close(region);
    EXPECT_EQ(shmipc_region_unlink(name.c_str(), SHMIPC_SYSV), 0);
  }
}

TEST(RegionSysvTest, CreatorAtWorkIsBusyAfterAWhileAndKilledIsTakenOver) {
  shmipc_region_options_t options = {};
  options.backend = SHMIPC_SYSV;
  options.size_bytes = 100;
  std::string name = Name("stopped");
  Shared<std::atomic<int>> is_inside;
  Process creator([&] {
    options.context = &*is_inside;
    options.initialize = [](void *context, void *, size_t) {
      *static_cast<std::atomic<int> *>(context) = 1;
      pause();
      return 0;
    };
    shmipc_region_t *region;
    return shmipc_region_create(name.c_str(), &options, &region);
  });
  while (*is_inside == 0) {
    std::this_thread::yield();
  }
  creator.Signal(SIGSTOP);
  shmipc_region_t *region;
  int64_t start = NowNs();
  EXPECT_EQ(shmipc_region_open(name.c_str(), &options, &region), -EBUSY);
  EXPECT_GE(NowNs() - start, 100000000);
  creator.Kill();
  ASSERT_EQ(shmipc_region_create_or_open(name.c_str(), &options, &region), 0);
  shmipc_region_close(region);
  EXPECT_EQ(shmipc_region_unlink(name.c_str(), SHMIPC_SYSV), 0);
}

TEST(RegionSysvTest, ForeignSegmentOfTheKeyIsLeftAlone) {
  std::string name = Name("foreign");
  key_t key = shmipc_sysv_key(name.c_str() + 1);
  int id = shmget(key, 8192, IPC_CREAT | IPC_EXCL | 0600);
  void *memory = shmat(id, nullptr, 0);
  memset(memory, 0x55, 8192);
  shmdt(memory);
  shmipc_region_options_t options = {};
  options.backend = SHMIPC_SYSV;
  options.size_bytes = 100;
  shmipc_region_t *region;
  EXPECT_EQ(shmipc_region_open(name.c_str(), &options, &region), -EPROTO);
  EXPECT_EQ(shmipc_region_create(name.c_str(), &options, &region), -EEXIST);
  EXPECT_EQ(shmipc_region_unlink(name.c_str(), SHMIPC_SYSV), -EPROTO);
  EXPECT_EQ(shmctl(id, IPC_RMID, nullptr), 0);
}

}  // namespace
