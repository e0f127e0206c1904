// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "shmipc/region.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/mutex.h"
#include "shmipc/region_internal.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::Name;
using shmipc_testing::NameOf;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

class RegionTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  bool IsNamed() const {
    return GetParam() != SHMIPC_MEMFD;
  }
  shmipc_region_options_t Options(size_t size_bytes = 100) const {
    shmipc_region_options_t options = {};
    options.backend = GetParam();
    options.size_bytes = size_bytes;
    return options;
  }
  const char *NameOrNull(const std::string &name) const {
    return IsNamed() ? name.c_str() : nullptr;
  }

  Watchdog watchdog_{120};
};

INSTANTIATE_TEST_SUITE_P(All, RegionTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(RegionTest, NewDataIsZeroAndSharedWithWhoeverAttaches) {
  TestRegion own(GetParam(), 5000);
  EXPECT_EQ(shmipc_region_size(own.region()), 8192u);
  unsigned char *data = own.data<unsigned char>();
  for (size_t i = 0; i < 8192; i++) {
    ASSERT_EQ(data[i], 0);
  }
  Process child([&] {
    shmipc_region_t *region = own.AttachInChild();
    static_cast<unsigned char *>(shmipc_region_data(region))[4999] = 7;
    return region != nullptr ? 0 : 1;
  });
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(data[4999], 7);
  EXPECT_EQ(Problems(own.region()), "");
}

TEST_P(RegionTest, BadArgumentsAreRefused) {
  shmipc_region_t *region;
  std::string name = Name("bad");
  auto create = [&](auto change) {
    shmipc_region_options_t options = Options();
    change(&options);
    return shmipc_region_create(NameOrNull(name), &options, &region);
  };
  EXPECT_EQ(create([](auto *o) { o->size_bytes = 0; }), -EINVAL);
  EXPECT_EQ(create([](auto *o) { o->capacity_bytes = 50; }), -EINVAL);
  EXPECT_EQ(create([](auto *o) { o->max_processes = 1025; }), -EINVAL);
  EXPECT_EQ(create([](auto *o) { o->max_threads = 16385; }), -EINVAL);
  EXPECT_EQ(create([](auto *o) { o->mode = 01600; }), -EINVAL);
  EXPECT_EQ(create([](auto *o) { o->read_only = true; }), -EINVAL);
  EXPECT_EQ(create([](auto *o) { o->size_bytes = SIZE_MAX; }), -EFBIG)
      << "no capacity: the same as the size";
  EXPECT_EQ(
      create([](auto *o) { o->backend = static_cast<shmipc_backend_t>(7); }),
      -EINVAL);
  EXPECT_EQ(shmipc_region_create(NameOrNull(name), nullptr, &region), -EINVAL);
}

TEST(RegionNameTest, IsOneSlashOrNoneAndNoOther) {
  shmipc_region_t *region;
  shmipc_region_options_t options = {};
  options.size_bytes = 1;
  for (const char *name :
       {"", "/", "//a", "/a/b", "a/", ".", "..", "/.", "/..", "/.shmipc.1.1"}) {
    EXPECT_EQ(shmipc_region_create(name, &options, &region), -EINVAL) << name;
    EXPECT_EQ(shmipc_region_open(name, &options, &region), -EINVAL) << name;
    EXPECT_EQ(shmipc_region_unlink(name, SHMIPC_POSIX), -EINVAL) << name;
  }
  std::string longest = Name("long").substr(1);
  longest += std::string(SHMIPC_NAME_MAX - longest.size(), 'x');
  EXPECT_EQ(shmipc_region_create(longest.c_str(), &options, &region), 0);
  shmipc_region_close(region);
  EXPECT_EQ(shmipc_region_unlink(("/" + longest).c_str(), SHMIPC_POSIX), 0);
  EXPECT_EQ(shmipc_region_create((longest + "x").c_str(), &options, &region),
            -ENAMETOOLONG);
}

TEST_P(RegionTest, SecondCreateIsRefusedAndOpenWithoutOneToo) {
  if (!IsNamed()) {
    GTEST_SKIP() << "no name";
  }
  shmipc_region_options_t options = Options();
  shmipc_region_t *second;
  std::string name = Name("twice");
  EXPECT_EQ(shmipc_region_open(name.c_str(), &options, &second), -ENOENT);
  EXPECT_EQ(shmipc_region_unlink(name.c_str(), GetParam()), -ENOENT);
  TestRegion own(GetParam(), 100);
  EXPECT_EQ(shmipc_region_create(own.name().c_str(), &options, &second),
            -EEXIST);
}

TEST_P(RegionTest, InitialiserRunsOnceAndItsFailureLeavesNothing) {
  shmipc_region_options_t options = Options(100);
  int calls = 0;
  options.context = &calls;
  options.initialize = [](void *context, void *data, size_t size_bytes) {
    static_cast<char *>(data)[size_bytes - 1] = 'x';
    return ++*static_cast<int *>(context) == 1 ? -EXDEV : 0;
  };
  std::string name = Name("initialise");
  shmipc_region_t *region;
  ASSERT_EQ(shmipc_region_create(NameOrNull(name), &options, &region), -EXDEV);
  ASSERT_EQ(shmipc_region_create(NameOrNull(name), &options, &region), 0);
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(static_cast<char *>(shmipc_region_data(region))[4095], 'x');
  shmipc_region_close(region);
  if (IsNamed()) {
    EXPECT_EQ(shmipc_region_unlink(name.c_str(), GetParam()), 0);
  }
}

TEST_P(RegionTest, LayoutTagsMustAgree) {
  TestRegion own(GetParam(), 100, [](auto *o) { o->layout_tag = 5; });
  int status;
  own.options().layout_tag = 6;
  EXPECT_EQ(own.Attach(&status), nullptr);
  EXPECT_EQ(status, -EBADMSG);
  own.options().layout_tag = 0;
  shmipc_region_close(own.Attach(&status));
  EXPECT_EQ(status, 0);
}

TEST_P(RegionTest, ReadOnlyAttachmentSeesAndChangesNothing) {
  TestRegion own(GetParam(), 100);
  own.data<char>()[0] = 'a';
  own.options().read_only = true;
  shmipc_region_t *reader = own.Attach();
  ASSERT_NE(reader, nullptr);
  EXPECT_EQ(static_cast<char *>(shmipc_region_data(reader))[0], 'a');
  EXPECT_EQ(shmipc_region_grow(reader, 50), -EROFS);
  EXPECT_EQ(shmipc_region_recover(reader), -EROFS);
  EXPECT_EQ(Problems(reader), "");
  shmipc_region_info_t info;
  ASSERT_EQ(shmipc_region_info_get(reader, &info), 0);
  EXPECT_EQ(info.slot, UINT32_MAX);
  EXPECT_EQ(info.num_live, 1u);
  Process child([&] {
    own.options().read_only = true;
    *static_cast<volatile char *>(shmipc_region_data(own.AttachInChild())) =
        'b';
    return 0;
  });
  int result = child.Wait();
  // Sanitizers turn the signal into an exit code.
  EXPECT_NE(result, 0);
  EXPECT_EQ(own.data<char>()[0], 'a');
  shmipc_region_close(reader);
}

TEST_P(RegionTest, SlotsRunOutAndComeBack) {
  TestRegion own(GetParam(), 100, [](auto *o) { o->max_processes = 3; });
  shmipc_region_t *second = own.Attach();
  shmipc_region_t *third = own.Attach();
  int status;
  EXPECT_EQ(own.Attach(&status), nullptr);
  EXPECT_EQ(status, -EUSERS);
  shmipc_region_info_t info;
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_live, 3u);
  shmipc_region_close(second);
  second = own.Attach(&status);
  EXPECT_EQ(status, 0);
  shmipc_region_close(second);
  shmipc_region_close(third);
  EXPECT_EQ(Problems(own.region()), "");
}

TEST_P(RegionTest, SlotsOfTheKilledAreCountedAndRecovered) {
  TestRegion own(GetParam(), 100);
  Shared<std::atomic<int>> attached;
  std::vector<Process> children;
  for (int i = 0; i < 5; i++) {
    children.emplace_back([&] {
      own.AttachInChild();
      ++*attached;
      pause();
      return 0;
    });
  }
  while (*attached < 5) {
    std::this_thread::yield();
  }
  shmipc_region_info_t info;
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_live, 6u);
  EXPECT_EQ(info.num_dead, 0u);
  children[0].Signal(SIGSTOP);
  children[1].Kill();
  // A zombie is dead, too.
  siginfo_t unused;
  children[2].Signal(SIGKILL);
  waitid(P_PID, static_cast<id_t>(children[2].pid()), &unused,
         WEXITED | WNOWAIT);
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_live, 4u);
  EXPECT_EQ(info.num_dead, 2u);
  EXPECT_EQ(Problems(own.region()), "");
  EXPECT_EQ(shmipc_region_recover(own.region()), 2);
  EXPECT_EQ(shmipc_region_recover(own.region()), 0);
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_live, 4u);
  EXPECT_EQ(info.num_dead, 0u);
}

TEST_P(RegionTest, ChildOfForkIsNotAttachedAndKeepsNobodyAlive) {
  TestRegion own(GetParam(), 100);
  Shared<std::atomic<int>> step;
  // The grandchild outlives its parent, which had attached.
  Process child([&] {
    own.AttachInChild();
    if (fork() == 0) {
      shmipc_region_info_t info;
      bool is_right =
          shmipc_region_recover(own.region()) == -ECHILD &&
          shmipc_region_grow(own.region(), 50) == -ECHILD &&
          shmipc_region_info_get(own.region(), &info) == -ECHILD &&
          shmipc_region_verify(own.region(), nullptr, nullptr) == -ECHILD;
      *step = is_right ? 1 : -1;
      while (*step != 2) {
        usleep(1000);
      }
      shmipc_region_t *again = own.AttachInChild();
      _exit(again != nullptr ? 0 : 1);
    }
    while (*step == 0) {
      usleep(1000);
    }
    return 0;
  });
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(*step, 1);
  shmipc_region_info_t info;
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_live, 1u);
  EXPECT_EQ(info.num_dead, 1u);
  *step = 2;
}

TEST_P(RegionTest, ForksWhileThreadsAttachInheritNoLife) {
  TestRegion own(GetParam(), 100);
  std::atomic<bool> is_done{false};
  std::thread attacher([&] {
    while (!is_done) {
      shmipc_region_close(own.Attach());
    }
  });
  std::vector<Process> children;
  for (int i = 0; i < 40; i++) {
    children.emplace_back([] {
      pause();
      return 0;
    });
  }
  is_done = true;
  attacher.join();
  shmipc_region_info_t info;
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_live, 1u) << "a child has somebody's open file";
  EXPECT_EQ(info.num_dead, 0u);
}

TEST_P(RegionTest, ExecEndsAnAttachmentButNotOfSystemV) {
  TestRegion own(GetParam(), 100);
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  Process child([&] {
    own.AttachInChild();
    dup2(pipe_fds[1], 1);
    execl("/bin/sh", "sh", "-c", "echo running; exec sleep 100", nullptr);
    return 1;
  });
  char byte;
  ASSERT_EQ(read(pipe_fds[0], &byte, 1), 1);
  shmipc_region_info_t info;
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_live, GetParam() == SHMIPC_SYSV ? 2u : 1u);
  child.Kill();
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_live, 1u);
  close(pipe_fds[0]);
  close(pipe_fds[1]);
}

TEST_P(RegionTest, RacingCreatorsEndWithOne) {
  if (!IsNamed()) {
    GTEST_SKIP() << "no name";
  }
  struct Board {
    std::atomic<int> is_open;
    std::atomic<int> creators;
  };
  for (int num_creators : {2, 3, 8, 32}) {
    std::string name = Name("race");
    Shared<Board> board;
    std::vector<Process> children;
    for (int i = 0; i < num_creators; i++) {
      children.emplace_back([&] {
        shmipc_region_options_t options = Options(1000);
        options.context = &*board;
        options.initialize = [](void *context, void *data, size_t) {
          static_cast<char *>(data)[0] = 'x';
          static_cast<Board *>(context)->creators++;
          return 0;
        };
        while (board->is_open == 0) {
        }
        shmipc_region_t *region;
        int status =
            shmipc_region_create_or_open(name.c_str(), &options, &region);
        if (status < 0) {
          fprintf(stderr, "%s\n", shmipc_strerror(status));
          return 1;
        }
        // All add to the same memory, or there were two regions.
        auto *counter = static_cast<std::atomic<int> *>(
            shmipc_region_at(region, 64, sizeof(int)));
        ++*counter;
        return static_cast<char *>(shmipc_region_data(region))[0] == 'x' ? 0
                                                                         : 2;
      });
    }
    board->is_open = 1;
    for (Process &child : children) {
      EXPECT_EQ(child.Wait(), 0);
    }
    shmipc_region_options_t options = Options();
    shmipc_region_t *region;
    ASSERT_EQ(shmipc_region_open(name.c_str(), &options, &region), 0);
    EXPECT_EQ(*static_cast<std::atomic<int> *>(
                  shmipc_region_at(region, 64, sizeof(int))),
              num_creators);
    shmipc_region_close(region);
    EXPECT_EQ(shmipc_region_unlink(name.c_str(), GetParam()), 0);
    if (GetParam() == SHMIPC_SYSV) {
      EXPECT_EQ(board->creators, 1) << "others do not even begin";
    }
  }
}

TEST_P(RegionTest, UnlinkedRegionLivesOnForItsUsersOnly) {
  if (!IsNamed()) {
    GTEST_SKIP() << "no name";
  }
  TestRegion own(GetParam(), 100);
  shmipc_region_t *second = own.Attach();
  ASSERT_EQ(shmipc_region_unlink(own.name().c_str(), GetParam()), 0);
  int status;
  EXPECT_EQ(own.Attach(&status), nullptr);
  EXPECT_EQ(status, -ENOENT);
  own.data<char>()[0] = 'u';
  EXPECT_EQ(static_cast<char *>(shmipc_region_data(second))[0], 'u');
  shmipc_region_info_t info;
  ASSERT_EQ(shmipc_region_info_get(second, &info), 0);
  EXPECT_EQ(info.num_live, 2u) << "liveness works without the name";
  // The name is free for another one, with slots of its own.
  shmipc_region_options_t options = Options();
  shmipc_region_t *other;
  ASSERT_EQ(shmipc_region_create(own.name().c_str(), &options, &other), 0);
  ASSERT_EQ(shmipc_region_info_get(other, &info), 0);
  EXPECT_EQ(info.num_live, 1u);
  shmipc_region_close(other);
  shmipc_region_close(second);
}

TEST_P(RegionTest, GrowsWhileOthersHaveItMapped) {
  if (GetParam() == SHMIPC_SYSV) {
    TestRegion fixed(SHMIPC_SYSV, 100);
    EXPECT_EQ(shmipc_region_grow(fixed.region(), 200), -EOPNOTSUPP);
    return;
  }
  constexpr size_t kMost = 1 << 20;
  TestRegion own(GetParam(), 100, [](auto *o) { o->capacity_bytes = kMost; });
  shmipc_region_t *second = own.Attach();
  char *data = own.data<char>();
  EXPECT_EQ(shmipc_region_at(second, 4096, 1), nullptr);
  ASSERT_EQ(shmipc_region_grow(own.region(), 10000), 0);
  EXPECT_EQ(shmipc_region_size(own.region()), 12288u);
  EXPECT_EQ(shmipc_region_data(own.region()), data) << "data moved";
  data[12287] = 'g';
  EXPECT_EQ(shmipc_region_size(second), 4096u) << "until it is asked for";
  char *seen = static_cast<char *>(shmipc_region_at(second, 12287, 1));
  ASSERT_NE(seen, nullptr);
  EXPECT_EQ(*seen, 'g');
  EXPECT_EQ(shmipc_region_at(second, 12287, 2), nullptr);
  EXPECT_EQ(shmipc_region_at(second, UINT64_MAX, 2), nullptr);
  EXPECT_EQ(shmipc_region_grow(second, 5), 0) << "is longer already";
  EXPECT_EQ(shmipc_region_grow(second, kMost + 1), -EFBIG);
  EXPECT_EQ(shmipc_region_grow(second, kMost), 0);
  EXPECT_NE(shmipc_region_at(own.region(), kMost - 1, 1), nullptr);
  EXPECT_EQ(Problems(own.region()), "");
  shmipc_region_close(second);
}

// What a dead process held may lie in pages that the one that recovers has not
// mapped: it is not forgotten.
TEST_P(RegionTest, RecoveryThatCannotMapLeavesAllAsItWas) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "does not grow";
  }
  constexpr uint64_t kFar = 100000;
  TestRegion own(GetParam(), 4096,
                 [](auto *o) { o->capacity_bytes = 1 << 20; });
  Process dead([&] {
    shmipc_region_t *region = own.AttachInChild();
    if (shmipc_region_grow(region, 2 * kFar) != 0) {
      return 1;
    }
    auto *mutex = static_cast<shmipc_mutex_t *>(
        shmipc_region_at(region, kFar, sizeof(shmipc_mutex_t)));
    return shmipc_mutex_lock(region, mutex, 0);
  });
  ASSERT_EQ(dead.Wait(), 0);
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  struct rlimit few = before;
  few.rlim_cur = 0;  // What is open stays so.
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  int status = shmipc_region_recover(own.region());
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(status, -EMFILE);
  shmipc_region_info_t info;
  ASSERT_EQ(shmipc_region_info_get(own.region(), &info), 0);
  EXPECT_EQ(info.num_dead, 1u);
  EXPECT_EQ(shmipc_region_recover(own.region()), 1);
  auto *mutex = static_cast<shmipc_mutex_t *>(
      shmipc_region_at(own.region(), kFar, sizeof(shmipc_mutex_t)));
  ASSERT_NE(mutex, nullptr);
  EXPECT_EQ(shmipc_mutex_lock(own.region(), mutex, 0), -EOWNERDEAD);
  EXPECT_EQ(shmipc_mutex_consistent(own.region(), mutex), 0);
  EXPECT_EQ(shmipc_mutex_unlock(own.region(), mutex), 0);
}

TEST_P(RegionTest, LimitOnFilesIsAnErrorAndNoSignal) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "no file";
  }
  Process child([&] {
    struct rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
    shmipc_region_options_t options = Options(2 << 20);
    shmipc_region_t *region;
    std::string name = Name("fsize");
    if (shmipc_region_create(NameOrNull(name), &options, &region) != -EFBIG) {
      return 1;
    }
    options.size_bytes = 1000;
    options.capacity_bytes = 4 << 20;
    if (shmipc_region_create(NameOrNull(name), &options, &region) != 0) {
      return 2;
    }
    int status = shmipc_region_grow(region, 3 << 20);
    shmipc_region_close(region);
    (void)!shmipc_region_unlink(name.c_str(), GetParam());
    return status == -EFBIG ? 0 : 3;
  });
  EXPECT_EQ(child.Wait(), 0);
}

TEST_P(RegionTest, HugePagesAreTakenOrAnError) {
  shmipc_region_options_t options = Options(100);
  options.huge_pages = true;
  std::string name = Name("huge");
  shmipc_region_t *region;
  int status = shmipc_region_create(NameOrNull(name), &options, &region);
  if (status == -ENOMEM || status == -ENOSPC || status == -EPERM) {
    printf("no huge pages here: %s\n", shmipc_strerror(status));
    EXPECT_NE(GetParam(), SHMIPC_POSIX) << "there it is a hint";
    return;
  }
  ASSERT_EQ(status, 0);
  static_cast<char *>(shmipc_region_data(region))[99] = 1;
  EXPECT_EQ(Problems(region), "");
  shmipc_region_close(region);
  if (IsNamed()) {
    EXPECT_EQ(shmipc_region_unlink(name.c_str(), GetParam()), 0);
  }
}

TEST_P(RegionTest, EveryChangedByteOfTheHeaderIsNoticedByOpeners) {
  TestRegion own(GetParam(), 100);
  unsigned char *base = own.region()->base;
  for (size_t i = 0; i < offsetof(shmipc_header_t, ready) + 4; i++) {
    if (i >= offsetof(shmipc_header_t, padding) &&
        i < offsetof(shmipc_header_t, ready)) {
      continue;
    }
    base[i] ^= 0x10;
    int status;
    EXPECT_EQ(own.Attach(&status), nullptr) << i;
    EXPECT_TRUE(status == -EPROTO || status == -EBADMSG) << i << ' ' << status;
    base[i] ^= 0x10;
  }
}

TEST(RegionErrorTest, EveryStatusHasAText) {
  for (int error : {0, EOWNERDEAD, ECHILD, EUSERS, EPROTO, ENOSPC, EIO}) {
    EXPECT_GT(strlen(shmipc_strerror(-error)), 5u) << error;
  }
  EXPECT_STREQ(shmipc_strerror(5), "not a status of this library");
}

}  // namespace
