// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Descriptors of ports in poll loops: readable when there is something, from
// other processes too, and after deaths.

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::Fill;
using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Process;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

bool IsReadable(int fd, int timeout_ms = 0) {
  struct pollfd wait = {fd, POLLIN, 0};
  return poll(&wait, 1, timeout_ms) == 1;
}

class ChannelPollTest : public testing::TestWithParam<shmipc_channel_kind_t> {
 protected:
  ChannelPollTest() {
    shmipc_channel_options_t options = {};
    options.kind = GetParam();
    options.message_bytes = 100;
    options.capacity_messages = 4;
    if (shmipc_channel_create(own_.region(), "channel", &options, &ref_) != 0) {
      abort();
    }
  }
  void *Channel(shmipc_region_t *region) const {
    return shmipc_ref_get(region, ref_, 1);
  }
  // Arms at a moment when the timer is not over at once.
  static bool ArmAndLook(shmipc_port_t *port) {
    for (;;) {
      if (shmipc_port_arm(port) != 0) {
        return false;
      }
      if (!IsReadable(shmipc_port_fd(port))) {
        return true;
      }
    }
  }

  Watchdog watchdog_{60};
  TestRegion own_{SHMIPC_MEMFD, 4096, [](auto *o) {
                    o->heap_bytes = 1 << 20;
                  }};
  shmipc_ref_t ref_ = {};
};

INSTANTIATE_TEST_SUITE_P(All, ChannelPollTest, testing::ValuesIn(kKinds),
                         channel_testing::ParamName);

TEST_P(ChannelPollTest, AReceiversIsReadableWhenAMessageIsThere) {
  Port sender(own_.region(), Channel(own_.region()), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(own_.region()), SHMIPC_RECEIVER);
  int fd = shmipc_port_fd(receiver.get());
  ASSERT_GE(fd, 0);
  EXPECT_EQ(shmipc_port_fd(receiver.get()), fd);
  for (int i = 0; i < 100; i++) {
    ASSERT_TRUE(ArmAndLook(receiver.get()));
    ASSERT_EQ(sender.Send("x"), 0);
    EXPECT_TRUE(IsReadable(fd));
    EXPECT_EQ(shmipc_port_arm(receiver.get()), -EAGAIN);
    EXPECT_EQ(receiver.Receive(), "x");
  }
}

TEST_P(ChannelPollTest, ASendersIsReadableWhenThereIsRoom) {
  Port sender(own_.region(), Channel(own_.region()), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(own_.region()), SHMIPC_RECEIVER);
  int fd = shmipc_port_fd(sender.get());
  ASSERT_GE(fd, 0);
  EXPECT_EQ(shmipc_port_arm(sender.get()), -EAGAIN);
  for (int i = 0; i < 20; i++) {
    while (sender.Send(Fill(100, 1)) == 0) {
    }
    ASSERT_TRUE(ArmAndLook(sender.get()));
    EXPECT_EQ(receiver.Receive(), Fill(100, 1));
    EXPECT_TRUE(IsReadable(fd));
  }
}

TEST_P(ChannelPollTest, ShutMakesItReadable) {
  Port sender(own_.region(), Channel(own_.region()), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(own_.region()), SHMIPC_RECEIVER);
  int fd = shmipc_port_fd(receiver.get());
  ASSERT_TRUE(ArmAndLook(receiver.get()));
  EXPECT_EQ(shmipc_port_shut(sender.get()), 0);
  EXPECT_TRUE(IsReadable(fd));
  EXPECT_EQ(shmipc_port_arm(receiver.get()), -EAGAIN);
  EXPECT_EQ(receiver.Receive(), "EPIPE");
}

// A loop as channel.h has it, until the sender's process has died.
TEST_P(ChannelPollTest, ALoopGetsAllAndSeesADeath) {
  constexpr uint64_t kCount = 5000;
  Port receiver(own_.region(), Channel(own_.region()), SHMIPC_RECEIVER);
  int fd = shmipc_port_fd(receiver.get());
  Process child([&] {
    shmipc_region_t *region = own_.AttachInChild();
    Port sender(region, Channel(region), SHMIPC_SENDER);
    for (uint64_t i = 0; i < kCount; i++) {
      if (sender.Send(Fill(i % 100, i), SHMIPC_FOREVER) != 0) {
        return 1;
      }
      if (i % 100 == 0) {
        usleep(100);
      }
    }
    raise(SIGKILL);
    return 0;
  });
  uint64_t next = 0;
  uint64_t polls = 0;
  for (bool is_dead = false; !is_dead;) {
    for (;;) {
      std::string message = receiver.Receive();
      is_dead |= message == "EOWNERDEAD";
      if (message == "ETIMEDOUT" || is_dead) {
        break;
      }
      ASSERT_EQ(message, Fill(next % 100, next));
      next++;
    }
    if (!is_dead && shmipc_port_arm(receiver.get()) == 0) {
      polls++;
      ASSERT_TRUE(IsReadable(fd, -1));
    }
  }
  EXPECT_EQ(next, kCount);
  EXPECT_GT(polls, 0u);
  EXPECT_EQ(child.Wait(), -SIGKILL);
}

// The sender was killed between its message and the notification: the timer.
TEST_P(ChannelPollTest, ALostNotificationIsMadeUpFor) {
  Port receiver(own_.region(), Channel(own_.region()), SHMIPC_RECEIVER);
  int fd = shmipc_port_fd(receiver.get());
  ASSERT_TRUE(ArmAndLook(receiver.get()));
  EXPECT_TRUE(IsReadable(fd, -1)) << "with nothing there";
  ASSERT_TRUE(ArmAndLook(receiver.get())) << "and can be armed again";
}

}  // namespace
