// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/group_commit.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::FaultyKernel;
using bufio_testing::IsCancelledAt;
using bufio_testing::ReadFile;
using bufio_testing::TempPath;

class GroupCommitTest : public testing::Test {
 protected:
  ~GroupCommitTest() override {
    bufio_group_close(group_);
    unlink(path_.c_str());
  }

  void Open() {
    ASSERT_EQ(bufio_group_open(path_.c_str(), nullptr, &group_), 0);
  }

  int Close() {
    int status = bufio_group_close(group_);
    group_ = nullptr;
    return status;
  }

  std::string path_ = TempPath("group");
  bufio_group_t *group_ = nullptr;
};

TEST_F(GroupCommitTest, WhatCannotBeOpenedSaysSo) {
  EXPECT_EQ(bufio_group_open("/no/such/file", nullptr, &group_), -ENOENT);
  EXPECT_EQ(bufio_group_close(nullptr), 0);
}

TEST_F(GroupCommitTest, CommittedRecordIsInTheFileAndSynced) {
  Open();
  EXPECT_EQ(bufio_group_commit(group_, "one\n", 4), 0);
  EXPECT_EQ(ReadFile(path_), "one\n");
  EXPECT_EQ(bufio_group_sync_count(group_), 1u);
}

TEST_F(GroupCommitTest, OneSyncServesAllThatWasAppended) {
  Open();
  uint64_t ticket = 0;
  for (int i = 0; i < 1000; i++) {
    ASSERT_EQ(bufio_group_append(group_, "record\n", 7, &ticket), 0);
  }
  EXPECT_EQ(bufio_group_wait(group_, ticket), 0);
  EXPECT_EQ(bufio_group_wait(group_, 7), 0);
  EXPECT_EQ(bufio_group_sync_count(group_), 1u);
  EXPECT_EQ(ReadFile(path_).size(), 7000u);
}

TEST_F(GroupCommitTest, ThreadsShareSyncsAndLoseNothing) {
  Open();
  constexpr int kThreads = 8;
  constexpr int kRecords = 100;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; thread++) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < kRecords; i++) {
        std::string record =
            std::to_string(thread) + " " + std::to_string(i) + "\n";
        ASSERT_EQ(bufio_group_commit(group_, record.data(), record.size()), 0);
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_LE(bufio_group_sync_count(group_),
            static_cast<uint64_t>(kThreads * kRecords));
  EXPECT_EQ(Close(), 0);
  std::istringstream file(ReadFile(path_));
  std::map<int, int> next;
  int thread;
  int i;
  int total = 0;
  while (file >> thread >> i) {
    ASSERT_EQ(next[thread]++, i);
    total++;
  }
  EXPECT_EQ(total, kThreads * kRecords);
}

TEST_F(GroupCommitTest, FailedSyncIsFinalForEverybody) {
  Open();
  FaultyKernel kernel;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    return call == Call::kSyncData && kernel.count(call) == 2 ? -EIO : 0;
  };
  EXPECT_EQ(bufio_group_commit(group_, "one", 3), 0);
  uint64_t first = 3;
  EXPECT_EQ(bufio_group_commit(group_, "two", 3), -EIO);
  EXPECT_EQ(bufio_group_commit(group_, "three", 5), -EIO);
  EXPECT_EQ(bufio_group_resume(group_), -EIO);
  // What was durable stays so.
  EXPECT_EQ(bufio_group_wait(group_, first), 0);
  EXPECT_EQ(bufio_group_wait(group_, first + 1), -EIO);
  EXPECT_EQ(Close(), -EIO);
  EXPECT_EQ(kernel.count(Call::kSyncData), 2u);
}

const std::function<void()> *in_sync;

// Somebody cancels the thread that syncs for all.
TEST_F(GroupCommitTest, CancelledLeaderLeavesNobodyBehind) {
  Open();
  bufio_system_t table = bufio_system_kernel;
  table.sync_data = [](int descriptor) {
    (*in_sync)();
    return bufio_system_kernel.sync_data(descriptor);
  };
  bufio_system = &table;
  bool is_cancelled = IsCancelledAt([&](const std::function<void()> &place) {
    in_sync = &place;
    (void)!bufio_group_commit(group_, "one", 3);
  });
  bufio_system = &bufio_system_kernel;
  if (is_cancelled) {
    group_ = nullptr;  // Nobody leads: close would wait for ever.
    FAIL() << "the leader went in the middle of a sync";
  }
  EXPECT_EQ(bufio_group_commit(group_, "two", 3), 0);
  EXPECT_EQ(ReadFile(path_), "onetwo");
}

TEST_F(GroupCommitTest, FullDiskIsCurable) {
  Open();
  uint64_t ticket = 0;
  {
    FaultyKernel kernel;
    kernel.decide = [](Call call, size_t) -> int64_t {
      return call == Call::kWrite ? -ENOSPC : 0;
    };
    EXPECT_EQ(bufio_group_append(group_, "one", 3, &ticket), 0);
    EXPECT_EQ(bufio_group_wait(group_, ticket), -ENOSPC);
    EXPECT_EQ(bufio_group_append(group_, "two", 3, &ticket), -ENOSPC);
  }
  EXPECT_EQ(bufio_group_resume(group_), 0);
  EXPECT_EQ(bufio_group_wait(group_, ticket), 0);
  EXPECT_EQ(bufio_group_commit(group_, "two", 3), 0);
  EXPECT_EQ(ReadFile(path_), "onetwo");
}

TEST_F(GroupCommitTest, ChildCannotUseIt) {
  Open();
  uint64_t ticket = 0;
  ASSERT_EQ(bufio_group_append(group_, "parent", 6, &ticket), 0);
  pid_t child = fork();
  if (child == 0) {
    // A sync would take the parent's error away.
    FaultyKernel kernel;
    bool good = bufio_group_commit(group_, "child", 5) == -ECHILD &&
                bufio_group_close(group_) == -ECHILD &&
                kernel.count(Call::kSyncData) == 0;
    _exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(bufio_group_wait(group_, ticket), 0);
  EXPECT_EQ(ReadFile(path_), "parent");
}

}  // namespace
