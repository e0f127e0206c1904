// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The registry, and the tool that shows it. Other tests may be running with
// regions of their own, so only names of this test count.

#include "shmipc/registry.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/region_internal.h"
#include "shmipc/shmipc_testing.h"
#include "shmipc/sysv_internal.h"

namespace {

using shmipc_testing::Name;
using shmipc_testing::NameOf;
using shmipc_testing::Process;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

using Entries = std::map<std::string, shmipc_entry_t>;

// By name; the pointer in it is not to be used.
void Collect(void *context, const shmipc_entry_t *entry) {
  (*static_cast<Entries *>(context))[entry->name] = *entry;
}

Entries List() {
  Entries entries;
  EXPECT_GE(shmipc_registry_list(Collect, &entries), 0);
  return entries;
}

Entries RemoveLeftovers() {
  Entries entries;
  EXPECT_GE(shmipc_registry_collect(Collect, &entries), 0);
  return entries;
}

class RegistryTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  static std::string Plain(const std::string &name) {
    return name.substr(1);
  }
  // A region whose only user was killed.
  std::string Leftover() {
    std::string name = Name("left");
    Process dies([&] {
      shmipc_region_options_t options = {};
      options.backend = GetParam();
      options.size_bytes = 100;
      shmipc_region_t *region;
      if (shmipc_region_create(name.c_str(), &options, &region) != 0) {
        return 1;
      }
      raise(SIGKILL);
      return 1;
    });
    EXPECT_EQ(dies.Wait(), -SIGKILL);
    return name;
  }

  Watchdog watchdog_{120};
};

INSTANTIATE_TEST_SUITE_P(All, RegistryTest,
                         testing::Values(SHMIPC_POSIX, SHMIPC_SYSV),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST_P(RegistryTest, ListsWhoIsAliveAndWhoIsDead) {
  TestRegion own(GetParam(), 100000);
  shmipc_region_t *second = own.Attach();
  Process dies([&] {
    own.AttachInChild();
    raise(SIGKILL);
    return 1;
  });
  dies.Wait();
  Entries entries = List();
  auto found = entries.find(Plain(own.name()));
  ASSERT_NE(found, entries.end());
  const shmipc_entry_t &entry = found->second;
  EXPECT_EQ(entry.backend, GetParam());
  EXPECT_GT(entry.size_bytes, 100000u);
  EXPECT_EQ(entry.num_live, 2u);
  EXPECT_EQ(entry.num_dead, 1u);
  EXPECT_FALSE(entry.has_readers);
  EXPECT_FALSE(entry.is_unfinished);
  EXPECT_EQ(entry.creator_pid, static_cast<uint32_t>(getpid()));
  EXPECT_GT(entry.created_s, 1600000000u);
  EXPECT_EQ(entry.owner_uid, geteuid());
  EXPECT_EQ(entry.mode, 0600u);
  shmipc_region_close(second);
}

TEST_P(RegistryTest, RemovesWhatTheDeadLeftAndNothingThatLives) {
  TestRegion own(GetParam(), 100);
  std::string left = Leftover();
  Process stopped([&] {
    own.AttachInChild();
    raise(SIGSTOP);
    return 0;
  });
  EXPECT_EQ(List()[Plain(left)].num_dead, 1u);
  Entries removed = RemoveLeftovers();
  EXPECT_EQ(removed.count(Plain(left)), 1u);
  EXPECT_EQ(removed.count(Plain(own.name())), 0u);
  EXPECT_EQ(List().count(Plain(left)), 0u);
  int status;
  shmipc_region_close(own.Attach(&status));
  EXPECT_EQ(status, 0);
}

TEST_P(RegistryTest, ReadOnlyAttachmentKeepsARegion) {
  std::string left = Leftover();
  shmipc_region_options_t options = {};
  options.backend = GetParam();
  options.read_only = true;
  shmipc_region_t *reader;
  ASSERT_EQ(shmipc_region_open(left.c_str(), &options, &reader), 0);
  EXPECT_EQ(RemoveLeftovers().count(Plain(left)), 0u);
  EXPECT_TRUE(List()[Plain(left)].has_readers);
  shmipc_region_close(reader);
  EXPECT_EQ(RemoveLeftovers().count(Plain(left)), 1u);
}

TEST_P(RegistryTest, RaceOfAttachingAndRemovingEndsWithOneRegion) {
  // Whoever attached has the region that the name leads to, as long as it is
  // attached: removers never win against it.
  std::string name = Name("race");
  Shared<std::atomic<uint32_t>> is_over;
  Shared<std::atomic<uint64_t>> removed;
  Shared<std::atomic<uint64_t>> rounds;
  shmipc_region_options_t options = {};
  options.backend = GetParam();
  options.size_bytes = 100;
  std::vector<Process> processes;
  for (int i = 0; i < 2; i++) {
    processes.emplace_back([&] {
      for (int j = 0; j < 1500; j++) {
        shmipc_region_t *region;
        int status =
            shmipc_region_create_or_open(name.c_str(), &options, &region);
        if (status != 0) {
          fprintf(stderr, "%s\n", shmipc_strerror(status));
          return 1;
        }
        // Ours and the one of the name are the same memory.
        shmipc_region_t *again;
        status = shmipc_region_open(name.c_str(), &options, &again);
        if (status != 0) {
          fprintf(stderr, "again: %s\n", shmipc_strerror(status));
          return 2;
        }
        auto *word =
            static_cast<std::atomic<uint64_t> *>(shmipc_region_data(region));
        uint64_t mark = ++*word;
        if (*static_cast<std::atomic<uint64_t> *>(shmipc_region_data(again)) <
            mark) {
          return 3;
        }
        shmipc_region_close(again);
        shmipc_region_close(region);
        ++*rounds;
      }
      return 0;
    });
  }
  Process remover([&] {
    while (*is_over == 0) {
      int status = GetParam() == SHMIPC_SYSV
                       ? shmipc_sysv_collect(name.c_str() + 1)
                       : shmipc_file_collect(name.c_str() + 1);
      if (status < 0) {
        fprintf(stderr, "collect: %s\n", shmipc_strerror(status));
        return 1;
      }
      *removed += static_cast<uint64_t>(status);
    }
    return 0;
  });
  for (Process &process : processes) {
    EXPECT_EQ(process.Wait(), 0);
  }
  *is_over = 1;
  EXPECT_EQ(remover.Wait(), 0);
  printf("%s: %lu rounds, removed %lu times\n", NameOf(GetParam()),
         static_cast<unsigned long>(*rounds),
         static_cast<unsigned long>(*removed));
  EXPECT_GT(*removed, 0u);
  (void)!shmipc_region_unlink(name.c_str(), GetParam());
}

TEST(RegistryFileTest, FileOfAKilledCreatorIsRemovedAndOneAtWorkIsNot) {
  shmipc_no_tmpfile = true;
  Shared<std::atomic<int>> is_inside;
  std::string name = Name("work");
  Process creator([&] {
    shmipc_region_options_t options = {};
    options.size_bytes = 100;
    options.context = &*is_inside;
    options.initialize = [](void *context, void *, size_t) {
      *static_cast<std::atomic<int> *>(context) = getpid();
      pause();
      return 0;
    };
    shmipc_region_t *region;
    return shmipc_region_create(name.c_str(), &options, &region);
  });
  shmipc_no_tmpfile = false;
  while (*is_inside == 0) {
    std::this_thread::yield();
  }
  std::string own = ".shmipc." + std::to_string(*is_inside) + ".1";
  EXPECT_TRUE(List()[own].is_unfinished);
  EXPECT_EQ(RemoveLeftovers().count(own), 0u);
  creator.Kill();
  EXPECT_EQ(RemoveLeftovers().count(own), 1u);
  EXPECT_EQ(List().count(own), 0u);
}

TEST(RegistryFileTest, ForeignFilesAreNeitherListedNorRemoved) {
  std::string name = Name("foreign");
  std::string path = "/dev/shm" + name;
  int fd = open(path.c_str(), O_CREAT | O_RDWR, 0600);
  ASSERT_EQ(ftruncate(fd, 65536), 0);
  close(fd);
  EXPECT_EQ(List().count(name.substr(1)), 0u);
  EXPECT_EQ(RemoveLeftovers().count(name.substr(1)), 0u);
  EXPECT_EQ(unlink(path.c_str()), 0) << "it is gone";
}

TEST(RegistrySysvTest, SetsThatLostTheirSegmentAreRemoved) {
  // Unlinked, and its last user killed: the segment is gone, the set is not.
  Shared<std::atomic<int>> set;
  Process dies([&] {
    TestRegion own(SHMIPC_SYSV, 100);
    *set = own.region()->semaphore_id;
    if (shmipc_region_unlink(own.name().c_str(), SHMIPC_SYSV) != 0) {
      return 1;
    }
    raise(SIGKILL);
    return 1;
  });
  ASSERT_EQ(dies.Wait(), -SIGKILL);
  EXPECT_TRUE(shmipc_sysv_set_is_left(*set));
  RemoveLeftovers();
  EXPECT_LT(semctl(*set, 0, GETVAL), 0);
  // One whose users live stays.
  TestRegion own(SHMIPC_SYSV, 100);
  ASSERT_EQ(shmipc_region_unlink(own.name().c_str(), SHMIPC_SYSV), 0);
  RemoveLeftovers();
  EXPECT_GE(semctl(own.region()->semaphore_id, 0, GETVAL), 0);
}

// -- The tool.

struct Result {
  int code;
  std::string output;
};

Result RunTool(const std::string &arguments) {
  std::string command = "shmipc/shmipc_tool " + arguments + " 2>&1";
  FILE *pipe = popen(command.c_str(), "r");
  Result result = {-1, ""};
  if (pipe != nullptr) {
    char line[512];
    while (fgets(line, sizeof(line), pipe) != nullptr) {
      result.output += line;
    }
    result.code = WEXITSTATUS(pclose(pipe));
  }
  return result;
}

TEST_P(RegistryTest, ToolListsVerifiesAndCollects) {
  TestRegion own(GetParam(), 100);
  std::string left = Leftover();
  Result list = RunTool("list");
  EXPECT_EQ(list.code, 0);
  EXPECT_NE(list.output.find(Plain(own.name())), std::string::npos)
      << list.output;
  EXPECT_NE(list.output.find(Plain(left)), std::string::npos);
  std::string where =
      std::string("--backend=") + NameOf(GetParam()) + " " + own.name();
  Result verify = RunTool("verify " + where);
  EXPECT_EQ(verify.code, 0) << verify.output;
  EXPECT_NE(verify.output.find("no problems"), std::string::npos);
  shmipc_header_of(own.region())->records_used = 9999;
  verify = RunTool("verify " + where);
  EXPECT_EQ(verify.code, 1);
  EXPECT_NE(verify.output.find("more records used"), std::string::npos)
      << verify.output;
  Result dry = RunTool("gc --dry_run");
  EXPECT_NE(dry.output.find(Plain(left)), std::string::npos);
  EXPECT_EQ(dry.output.find(Plain(own.name())), std::string::npos);
  EXPECT_EQ(List().count(Plain(left)), 1u);
  Result gc = RunTool("gc");
  EXPECT_EQ(gc.code, 0);
  EXPECT_EQ(List().count(Plain(left)), 0u);
  EXPECT_EQ(List().count(Plain(own.name())), 1u);
}

TEST(ToolTest, BadArgumentsAreExplained) {
  for (const char *arguments :
       {"", "frobnicate", "verify", "list more", "verify --backend=x /a"}) {
    Result result = RunTool(arguments);
    EXPECT_EQ(result.code, 2) << arguments;
    EXPECT_NE(result.output.find("shmipc_tool"), std::string::npos);
  }
  Result result = RunTool("verify /there_is_no_such_region");
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.output.find("no region of that name"), std::string::npos);
}

}  // namespace
