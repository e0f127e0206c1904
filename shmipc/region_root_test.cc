// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What only root can test: other users, a folder that is full. Without the
// right to do so each test is skipped.

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
  uint64_t num_fills = Count("SHMIPC_FILLS", 100);
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
