// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What ends a channel, or one of its ends: shutting it, and deaths at rest.
// Kills at random and step by step are in channel_kill_test and
// channel_step_test; who is told of which death in channel_peer_test.

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/channel_internal.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::Fill;
using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Shared;

constexpr int64_t kLong = 20000000000;

class ChannelEndTest : public channel_testing::KindTest {};

INSTANTIATE_TEST_SUITE_P(All, ChannelEndTest, testing::ValuesIn(kKinds),
                         channel_testing::ParamName);

// -- Shutting.

TEST_P(ChannelEndTest, ShutEndsWhatComesAfterTheLastMessage) {
  void *channel = Create(100, 4);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  ASSERT_EQ(sender.Send("last"), 0);
  EXPECT_EQ(shmipc_port_shut(sender.get()), 0);
  EXPECT_EQ(sender.Send("more"), -EPIPE);
  EXPECT_EQ(receiver.Receive(kLong), "last");
  EXPECT_EQ(receiver.Receive(kLong), "EPIPE");
  EXPECT_EQ(receiver.Receive(), "EPIPE");
  shmipc_channel_info_t info;
  ASSERT_EQ(shmipc_channel_info_get(region_, channel, &info), 0);
  EXPECT_TRUE(info.is_shut);
}

TEST_P(ChannelEndTest, ShutWakesThoseThatWait) {
  void *channel = Create(100, 4);
  shmipc_ref_t ref = shmipc_ref_of(region_, channel);
  Port sender(region_, channel, SHMIPC_SENDER);
  Process child([&] {
    shmipc_region_t *region = own_.AttachInChild();
    Port receiver(region, shmipc_ref_get(region, ref, 1), SHMIPC_RECEIVER);
    return receiver.Receive(SHMIPC_FOREVER) == "EPIPE" ? 0 : 1;
  });
  shmipc_channel_info_t info = {};
  while (info.num_receivers == 0) {
    ASSERT_EQ(shmipc_channel_info_get(region_, channel, &info), 0);
  }
  EXPECT_EQ(shmipc_port_shut(sender.get()), 0);
  EXPECT_EQ(child.Wait(), 0);
}

// -- Deaths.

TEST_P(ChannelEndTest, WhatADeadSenderWasWritingIsNeverSeen) {
  void *channel = Create(100, 4);
  shmipc_ref_t ref = shmipc_ref_of(region_, channel);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  for (int i = 0; i < 6; i++) {
    Process child([&] {
      shmipc_region_t *region = own_.AttachInChild();
      Port sender(region, shmipc_ref_get(region, ref, 1), SHMIPC_SENDER);
      void *data;
      if (sender.Send("whole") != 0 ||
          shmipc_port_reserve(sender.get(), 100, &data, 0) != 0) {
        return 1;
      }
      memset(data, 'x', 100);
      _exit(0);
    });
    ASSERT_EQ(child.Wait(), 0);
    EXPECT_EQ(receiver.Receive(kLong), "whole");
    EXPECT_EQ(receiver.Receive(kLong), "EOWNERDEAD");
    EXPECT_EQ(receiver.Receive(100000), "ETIMEDOUT") << "said twice";
    Port sender(region_, channel, SHMIPC_SENDER);
    EXPECT_EQ(sender.Send("from the next"), 0);
    EXPECT_EQ(receiver.Receive(kLong), "from the next");
    EXPECT_EQ(Problems(region_), "");
  }
}

TEST_P(ChannelEndTest, WhatADeadReceiverPeekedAtComesAgain) {
  void *channel = Create(100, 4);
  shmipc_ref_t ref = shmipc_ref_of(region_, channel);
  Port sender(region_, channel, SHMIPC_SENDER);
  for (int i = 0; i < 6; i++) {
    for (const char *text : {"one", "two", "three"}) {
      ASSERT_EQ(sender.Send(text), 0);
    }
    Process child([&] {
      shmipc_region_t *region = own_.AttachInChild();
      Port receiver(region, shmipc_ref_get(region, ref, 1), SHMIPC_RECEIVER);
      const void *data;
      size_t len;
      if (receiver.Receive() != "one" ||
          shmipc_port_peek(receiver.get(), &data, &len, 0) != 0) {
        return 1;
      }
      _exit(len == 3 ? 0 : 2);
    });
    ASSERT_EQ(child.Wait(), 0);
    shmipc_channel_info_t info;
    ASSERT_EQ(shmipc_channel_info_get(region_, channel, &info), 0);
    EXPECT_EQ(info.num_dead, 1u);
    EXPECT_EQ(info.num_receivers, 0u);
    EXPECT_EQ(Problems(region_), "");
    Port receiver(region_, channel, SHMIPC_RECEIVER);
    // Somebody has taken its place by now, so this is no news.
    EXPECT_EQ(sender.Send("four"), 0);
    EXPECT_EQ(receiver.Receive(), "two");
    EXPECT_EQ(receiver.Receive(), "three");
    EXPECT_EQ(receiver.Receive(), "four");
    EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
    EXPECT_EQ(Problems(region_), "");
  }
}

TEST_P(ChannelEndTest, ASenderIsToldOnceThatNobodyReceives) {
  void *channel = Create(100, 4);
  shmipc_ref_t ref = shmipc_ref_of(region_, channel);
  Port sender(region_, channel, SHMIPC_SENDER);
  Process child([&] {
    shmipc_region_t *region = own_.AttachInChild();
    shmipc_port_t *port;
    return shmipc_port_open(region, shmipc_ref_get(region, ref, 1),
                            SHMIPC_RECEIVER, &port);
  });
  ASSERT_EQ(child.Wait(), 0);
  int sent = 0;
  int status;
  while ((status = sender.Send(Fill(100, 0), kLong)) == 0) {
    sent++;
  }
  EXPECT_EQ(status, -EOWNERDEAD);
  EXPECT_GE(sent, 4);
  EXPECT_EQ(sender.Send(Fill(100, 0), 3000000), -ETIMEDOUT);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  EXPECT_EQ(receiver.Receive(), Fill(100, 0));
  EXPECT_EQ(sender.Send("x"), 0);
}

TEST_P(ChannelEndTest, OneThatClosesItsRegionWithItsPortsLeavesThem) {
  void *channel = Create(100, 4);
  shmipc_region_t *second = own_.Attach();
  shmipc_port_t *port;
  ASSERT_EQ(
      shmipc_port_open(
          second, shmipc_ref_get(second, shmipc_ref_of(region_, channel), 1),
          SHMIPC_SENDER, &port),
      0);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  void *data;
  ASSERT_EQ(shmipc_port_reserve(port, 3, &data, 0), 0);
  // As exec does.
  Process child([&] { return 0; });
  child.Wait();
  shmipc_port_t copy = *port;
  shmipc_port_close(port);
  EXPECT_EQ(receiver.Receive(kLong / 1000), "ETIMEDOUT");
  // The entry as if it had not been closed.
  copy.entry->word = copy.word;
  shmipc_region_close(second);
  EXPECT_EQ(receiver.Receive(kLong), "EOWNERDEAD");
  Port sender(region_, channel, SHMIPC_SENDER);
  EXPECT_EQ(sender.Send("x"), 0);
  EXPECT_EQ(receiver.Receive(), "x");
}

TEST_P(ChannelEndTest, AStoppedReceiverIsAlive) {
  void *channel = Create(100, 4);
  shmipc_ref_t ref = shmipc_ref_of(region_, channel);
  Port sender(region_, channel, SHMIPC_SENDER);
  ASSERT_EQ(sender.Send("one"), 0);
  Shared<std::atomic<uint32_t>> has_peeked;
  Process child([&] {
    shmipc_region_t *region = own_.AttachInChild();
    Port receiver(region, shmipc_ref_get(region, ref, 1), SHMIPC_RECEIVER);
    const void *data;
    size_t len;
    if (shmipc_port_peek(receiver.get(), &data, &len, 0) != 0) {
      return 1;
    }
    *has_peeked = 1;
    raise(SIGSTOP);
    return shmipc_port_release(receiver.get()) == 0 &&
                   receiver.Receive(kLong) == "more"
               ? 0
               : 2;
  });
  while (*has_peeked == 0) {
  }
  int status;
  while ((status = sender.Send("more", 3000000)) == 0) {
  }
  EXPECT_EQ(status, -ETIMEDOUT);
  shmipc_port_t *port;
  if (IsSpsc()) {
    EXPECT_EQ(shmipc_port_open(region_, channel, SHMIPC_RECEIVER, &port),
              -EBUSY);
  }
  child.Signal(SIGCONT);
  EXPECT_EQ(child.Wait(), 0);
}

}  // namespace
