// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What only root can test: other users, a folder that is full. Without the
// right to do so each test is skipped.

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "gtest/gtest.h"
#include "shmipc/region.h"
#include "shmipc/region_internal.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::Count;
using shmipc_testing::Name;
using shmipc_testing::NameOf;
using shmipc_testing::Process;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int kMayNot = 77;

class RegionRootTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  Watchdog watchdog_{120};
};

INSTANTIATE_TEST_SUITE_P(All, RegionRootTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(RegionRootTest, PermissionsAreTheOwnersAlone) {
  TestRegion own(GetParam(), 100);
  Process stranger([&] {
    own.CloseOwn();
    if (setgid(12345) != 0 || setuid(12345) != 0) {
      return kMayNot;
    }
    int status;
    own.Attach(&status);
    return status == -EACCES ? 0 : 2;
  });
  int result = stranger.Wait();
  if (result == kMayNot) {
    GTEST_SKIP() << "may not change the user: needs root";
  }
  EXPECT_EQ(result, 0);
}

TEST_P(RegionRootTest, RegionOfAnotherUserIsOpenedOnlyIfAskedFor) {
  if (GetParam() == SHMIPC_MEMFD) {
    GTEST_SKIP() << "no name";
  }
  shmipc_region_options_t options = {};
  options.backend = GetParam();
  options.size_bytes = 100;
  std::string name = Name("other");
  Process stranger([&] {
    shmipc_region_t *region;
    return setuid(12345) == 0 &&
                   shmipc_region_create(name.c_str(), &options, &region) == 0
               ? 0
               : 1;
  });
  ASSERT_EQ(stranger.Wait(), 0);
  shmipc_region_t *region;
  EXPECT_EQ(shmipc_region_open(name.c_str(), &options, &region), -EPERM);
  options.allow_other_owner = true;
  ASSERT_EQ(shmipc_region_open(name.c_str(), &options, &region), 0);
  shmipc_region_close(region);
  EXPECT_EQ(shmipc_region_unlink(name.c_str(), GetParam()), 0);
}

// In an IPC namespace of its own, where segments are small or few.
TEST(RegionSysvTest, LimitsOnSegmentsAreNoSpaceAndLeaveNothing) {
  auto limit = [](const char *what, const char *value) {
    std::string path = std::string("/proc/sys/kernel/") + what;
    int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    auto len = static_cast<ssize_t>(strlen(value));
    bool done = fd >= 0 && write(fd, value, strlen(value)) == len;
    close(fd);
    return done;
  };
  auto create = [](const char *name, size_t size_bytes) {
    shmipc_region_options_t options = {};
    options.backend = SHMIPC_SYSV;
    options.size_bytes = size_bytes;
    shmipc_region_t *region;
    int status = shmipc_region_create(name, &options, &region);
    if (status == 0) {
      memset(shmipc_region_data(region), 1, size_bytes);
      shmipc_region_close(region);
    }
    return status;
  };
  Process limited([&] {
    if (unshare(CLONE_NEWIPC) != 0 || !limit("shmmax", "1048576")) {
      return kMayNot;
    }
    if (create("/a", 2 << 20) != -ENOSPC || create("/a", 900000) != 0 ||
        create("/a", 900000) != -EEXIST) {
      return 2;
    }
    // 4 MiB of all together.
    if (!limit("shmall", "1024")) {
      return kMayNot;
    }
    int count = 0;
    int status;
    do {
      std::string name = "/b" + std::to_string(count++);
      status = create(name.c_str(), 900000);
    } while (status == 0 && count < 10);
    if (status != -ENOSPC || count < 2) {
      return 3;
    }
    // And as many segments as there may be.
    if (!limit("shmall", "1000000") || !limit("shmmni", "8")) {
      return kMayNot;
    }
    while ((status = create(("/c" + std::to_string(count++)).c_str(), 100)) ==
               0 &&
           count < 30) {
    }
    if (status != -ENOSPC) {
      return 4;
    }
    if (shmipc_region_unlink("/a", SHMIPC_SYSV) != 0) {
      return 6;
    }
    return create("/a", 900000) == 0 ? 0 : 5;
  });
  int result = limited.Wait();
  if (result == kMayNot) {
    GTEST_SKIP() << "may not make an IPC namespace and change its limits";
  }
  EXPECT_EQ(result, 0);
}

TEST(RegionFileTest, FullFolderIsNoSpaceAndNoSignal) {
  char folder[] = "/tmp/shmipc_full_XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  if (mount("tmpfs", folder, "tmpfs", 0, "size=1m") != 0) {
    rmdir(folder);
    GTEST_SKIP() << "may not mount: needs root";
  }
  const char *old = shmipc_folder;
  shmipc_folder = folder;
  shmipc_region_options_t options = {};
  options.size_bytes = 2 << 20;
  shmipc_region_t *region = nullptr;
  EXPECT_EQ(shmipc_region_create("/a", &options, &region), -ENOSPC);
  EXPECT_EQ(shmipc_region_open("/a", &options, &region), -ENOENT);
  options.size_bytes = 1000;
  uint64_t num_fills = Count("SHMIPC_FILLS", 1000);
  options.capacity_bytes = 4 << 20;
  for (uint64_t i = 0; i < num_fills; i++) {
    ASSERT_EQ(shmipc_region_create("/a", &options, &region), 0) << i;
    EXPECT_EQ(shmipc_region_grow(region, 3 << 20), -ENOSPC);
    EXPECT_EQ(shmipc_region_size(region), 4096u);
    // To the last page, each of which is there.
    size_t size_bytes = 4096;
    while (shmipc_region_grow(region, size_bytes + 4096) == 0) {
      size_bytes += 4096;
    }
    EXPECT_GT(size_bytes, 900000u);
    memset(shmipc_region_data(region), 1, size_bytes);
    shmipc_region_close(region);
    ASSERT_EQ(shmipc_region_unlink("/a", SHMIPC_POSIX), 0);
  }
  shmipc_folder = old;
  EXPECT_EQ(umount(folder), 0);
  rmdir(folder);
}

}  // namespace
