// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Who is at the other end of a channel, and what those who died, stopped or
// idled leave to the others. A child that is stopped between two instructions
// is single-stepped by ptrace; those tests are skipped where that is not
// permitted.

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/channel_internal.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::NowNs;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Stepped;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kLong = 20000000000;
constexpr int64_t kShort = 20000000;

class ChannelPeerTest : public testing::TestWithParam<shmipc_channel_kind_t> {
 protected:
  explicit ChannelPeerTest(size_t capacity = 4) {
    shmipc_channel_options_t options = {};
    options.kind = GetParam();
    options.message_bytes = 32;
    options.capacity_messages = capacity;
    if (shmipc_channel_create(region_, "channel", &options, &ref_) != 0) {
      abort();
    }
  }
  bool IsSpsc() const {
    return GetParam() == SHMIPC_SPSC;
  }
  shmipc_channel_t *Channel() const {
    return static_cast<shmipc_channel_t *>(shmipc_ref_get(region_, ref_, 1));
  }
  shmipc_port_t *OpenInChild(shmipc_role_t role) {
    shmipc_region_t *region = own_.AttachInChild();
    shmipc_port_t *port = nullptr;
    if (region == nullptr ||
        shmipc_port_open(region, shmipc_ref_get(region, ref_, 1), role,
                         &port) != 0) {
      _exit(9);
    }
    return port;
  }
  // A process that dies with a port, and with a message at hand if it `has`.
  void OneDies(shmipc_role_t role, bool has = false) {
    Process child([&]() -> int {
      shmipc_port_t *port = OpenInChild(role);
      void *place;
      const void *data;
      size_t len;
      int status = 0;
      if (has) {
        status = role == SHMIPC_SENDER ? shmipc_port_reserve(port, 3, &place, 0)
                                       : shmipc_port_peek(port, &data, &len, 0);
      }
      _exit(status == 0 ? 0 : 1);
    });
    ASSERT_EQ(child.Wait(), 0);
  }
  // The dead ones' ports are freed by somebody else.
  void OtherRecovers() {
    shmipc_port_t *port;
    ASSERT_EQ(shmipc_port_open(region_, Channel(), SHMIPC_SENDER, &port), 0);
    shmipc_port_close(port);
  }
  // One that has asked for its peers just now.
  static void HasAsked(const Port &port) {
    port.get()->checked_ns = NowNs() + 1000000000;
  }

  Watchdog watchdog_{120};
  TestRegion own_{SHMIPC_MEMFD, 4096, [](auto *o) {
                    o->heap_bytes = 1 << 20;
                  }};
  shmipc_region_t *region_ = own_.region();
  shmipc_ref_t ref_ = {};
};

INSTANTIATE_TEST_SUITE_P(All, ChannelPeerTest, testing::ValuesIn(kKinds),
                         channel_testing::ParamName);

// -- Being told.

TEST_P(ChannelPeerTest, ADeadReceiversMessageComesBeforeShut) {
  if (IsSpsc()) {
    GTEST_SKIP() << "there is one receiver";
  }
  Port sender(region_, Channel(), SHMIPC_SENDER);
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  for (int64_t timeout : {int64_t{0}, kLong}) {
    Channel()->is_shut = 0;
    ASSERT_EQ(sender.Send("one"), 0);
    OneDies(SHMIPC_RECEIVER, true);
    HasAsked(receiver);
    ASSERT_EQ(shmipc_port_shut(sender.get()), 0);
    EXPECT_EQ(receiver.Receive(timeout), "one");
    EXPECT_EQ(receiver.Receive(timeout), "EPIPE");
  }
}

TEST_P(ChannelPeerTest, ADeadReceiversMessageComesBeforeADeath) {
  if (IsSpsc()) {
    GTEST_SKIP() << "there is one receiver";
  }
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  Process child([&]() -> int {
    shmipc_port_t *port = OpenInChild(SHMIPC_SENDER);
    _exit(shmipc_port_send(port, "one", 3, 0) == 0 ? 0 : 1);
  });
  ASSERT_EQ(child.Wait(), 0);
  OtherRecovers();
  OneDies(SHMIPC_RECEIVER, true);
  HasAsked(receiver);
  EXPECT_EQ(receiver.Receive(), "one");
  EXPECT_EQ(receiver.Receive(), "EOWNERDEAD");
  EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
}

// However short a wait is, the dead are asked for sooner or later.
TEST_P(ChannelPeerTest, ShortTimeoutsFindTheDead) {
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  OneDies(SHMIPC_SENDER, true);
  std::string came;
  int64_t end = NowNs() + kLong;
  do {
    came = receiver.Receive(1);
  } while (came == "ETIMEDOUT" && NowNs() < end);
  EXPECT_EQ(came, "EOWNERDEAD");
}

// A recoverer has counted the death, and the entry is there still.
TEST_P(ChannelPeerTest, OneThatIsBeingRecoveredIsNoPeer) {
  if (IsSpsc()) {
    GTEST_SKIP() << "there is nobody else";
  }
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  Stepped other([&] {
    shmipc_port_t *port = OpenInChild(SHMIPC_RECEIVER);
    raise(SIGSTOP);
    char buffer[32];
    size_t len;
    (void)!shmipc_port_receive(port, buffer, sizeof(buffer), &len, 0);
  });
  if (!other.is_stopped()) {
    GTEST_SKIP() << "ptrace is not permitted";
  }
  OneDies(SHMIPC_SENDER);
  shmipc_channel_t *channel = Channel();
  ASSERT_TRUE(other.StepUntil([&] { return channel->deaths[0] != 0; }));
  HasAsked(receiver);
  EXPECT_EQ(receiver.Receive(), "EOWNERDEAD");
  other.GoOn();
}

TEST_P(ChannelPeerTest, ADeathWhileAnotherLivesIsNotTheLast) {
  if (IsSpsc()) {
    GTEST_SKIP() << "there is one sender";
  }
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  Port sender(region_, Channel(), SHMIPC_SENDER);
  OneDies(SHMIPC_SENDER);
  OtherRecovers();
  ASSERT_EQ(sender.Send("bye"), 0);
  sender.Close();
  EXPECT_EQ(receiver.Receive(), "bye");
  EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
  EXPECT_EQ(receiver.Receive(kShort), "ETIMEDOUT");
}

// The last two died together, and either may be recovered first.
TEST_P(ChannelPeerTest, TwoThatDieAreTheLast) {
  if (IsSpsc()) {
    GTEST_SKIP() << "there is one sender";
  }
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  OneDies(SHMIPC_SENDER);
  OneDies(SHMIPC_SENDER);
  EXPECT_EQ(receiver.Receive(kLong), "EOWNERDEAD");
  EXPECT_EQ(receiver.Receive(kShort), "ETIMEDOUT");
}

// One that was about to count a death goes on when that was told long ago.
TEST_P(ChannelPeerTest, ASlowRecovererTellsNothingNew) {
  if (IsSpsc()) {
    GTEST_SKIP() << "there is nobody else";
  }
  auto work = [&] {
    shmipc_port_t *port = OpenInChild(SHMIPC_RECEIVER);
    raise(SIGSTOP);
    char buffer[32];
    size_t len;
    (void)!shmipc_port_receive(port, buffer, sizeof(buffer), &len, 0);
  };
  shmipc_channel_t *channel = Channel();
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  uint64_t until_count;
  {
    Stepped first(work);
    if (!first.is_stopped()) {
      GTEST_SKIP() << "ptrace is not permitted";
    }
    OneDies(SHMIPC_SENDER);
    ASSERT_TRUE(first.StepUntil([&] { return channel->deaths[0] != 0; }));
    until_count = first.num_steps();
    first.GoOn();
    EXPECT_EQ(receiver.Receive(), "EOWNERDEAD");
  }
  // Some way before that: it knows that the port is a dead one's.
  uint64_t told_again = 0;
  uint64_t tries = 0;
  uint64_t misses = 0;
  for (uint64_t before = 1; before <= 33;) {
    uint32_t seen = channel->deaths[0];
    Stepped slow(work);
    ASSERT_TRUE(slow.is_stopped());
    OneDies(SHMIPC_SENDER);
    ASSERT_TRUE(slow.Step(until_count - before));
    if (channel->deaths[0] != seen) {
      // Not every run takes as many steps to there: aim earlier.
      slow.GoOn();
      EXPECT_EQ(receiver.Receive(), "EOWNERDEAD");
      until_count -= 8;
      ASSERT_LT(++misses, 50u);
      continue;
    }
    before += 4;
    tries++;
    receiver.get()->checked_ns = 0;
    EXPECT_EQ(receiver.Receive(kLong), "EOWNERDEAD");
    Port sender(region_, Channel(), SHMIPC_SENDER);
    ASSERT_EQ(sender.Send("new"), 0);
    EXPECT_EQ(receiver.Receive(), "new");
    sender.Close();
    slow.GoOn();
    HasAsked(receiver);
    told_again += receiver.Receive() == "EOWNERDEAD";
  }
  // Between the last look and the count it cannot know.
  EXPECT_LT(told_again, tries / 2) << "of " << tries;
}

// -- Memory that was not there when we attached.

TEST_P(ChannelPeerTest, AChannelInMemoryThatCameLaterCanBeOpened) {
  TestRegion grows(SHMIPC_MEMFD, 4096, [](auto *o) {
    o->heap_bytes = 1 << 20;
    o->heap_capacity_bytes = 64 << 20;
  });
  shmipc_region_t *early = grows.Attach();
  ASSERT_NE(early, nullptr);
  size_t mapped = shmipc_mapped_bytes(early);
  shmipc_channel_options_t options = {};
  options.kind = GetParam();
  options.message_bytes = 1000;
  options.capacity_messages = 4000;
  shmipc_ref_t ref;
  ASSERT_EQ(shmipc_channel_create(grows.region(), "late", &options, &ref), 0);
  ASSERT_LT(ref.offset, mapped) << "it has to begin in what is mapped";
  ASSERT_GT(ref.offset + shmipc_channel_bytes(&options), mapped);
  EXPECT_EQ(Problems(early), "");
  {
    Port sender(grows.region(), shmipc_ref_get(grows.region(), ref, 1),
                SHMIPC_SENDER);
    Port receiver(early, shmipc_ref_get(early, ref, 1), SHMIPC_RECEIVER);
    EXPECT_EQ(sender.Send("late"), 0);
    EXPECT_EQ(receiver.Receive(), "late");
  }
  shmipc_region_close(early);
}

// -- Ports of others that are slow.

// One that looks for a returned message is stopped at any instruction of it:
// others find the message.
TEST_P(ChannelPeerTest, OneThatIsStoppedWithoutAMessageHidesNone) {
  if (IsSpsc()) {
    GTEST_SKIP() << "there is one receiver";
  }
  uint64_t hidden = 0;
  for (uint64_t steps = 0; steps < 250; steps += 3) {
    Port sender(region_, Channel(), SHMIPC_SENDER);
    Port receiver(region_, Channel(), SHMIPC_RECEIVER);
    HasAsked(receiver);
    Stepped stopped([&] {
      shmipc_port_t *port = OpenInChild(SHMIPC_RECEIVER);
      raise(SIGSTOP);
      const void *data;
      size_t len;
      (void)!shmipc_port_peek(port, &data, &len, kLong);
    });
    if (!stopped.is_stopped()) {
      GTEST_SKIP() << "ptrace is not permitted";
    }
    ASSERT_EQ(sender.Send("one"), 0);
    OneDies(SHMIPC_RECEIVER, true);
    OtherRecovers();
    ASSERT_TRUE(stopped.Step(steps));
    bool has_it = false;
    for (uint64_t i = 0; i < 4; i++) {
      uint64_t word = shmipc_cell_of(&receiver.get()->view, i)->word;
      has_it |= SHMIPC_CELL_STATE(word) == SHMIPC_CELL_READING;
    }
    if (has_it) {
      break;
    }
    hidden += receiver.Receive() != "one";
  }
  EXPECT_EQ(hidden, 0u);
}

// Others have sent and received for that many laps since we did.
TEST_P(ChannelPeerTest, AnIdlePortFindsItsPlaceAgain) {
  if (IsSpsc()) {
    GTEST_SKIP() << "its places are one lap's";
  }
  for (uint32_t laps :
       {2u, 0x7ffffff0u, 0x80000005u, 0xf0000000u, 0xffffff00u}) {
    Port sender(region_, Channel(), SHMIPC_SENDER);
    Port receiver(region_, Channel(), SHMIPC_RECEIVER);
    shmipc_view_t view = sender.get()->view;
    ASSERT_EQ(sender.Send("a"), 0);
    ASSERT_EQ(receiver.Receive(), "a");
    uint64_t place = sender.get()->position;
    uint64_t lap = (place >> view.lap_shift) + laps;
    for (uint64_t i = 0; i <= view.mask; i++) {
      shmipc_cell_of(&view, i)->word =
          SHMIPC_CELL_WORD(lap, 0, SHMIPC_CELL_FREE);
    }
    Channel()->sender_hint = Channel()->head = lap << view.lap_shift;
    {
      Port other(region_, Channel(), SHMIPC_SENDER);
      ASSERT_EQ(other.Send("b"), 0);
    }
    EXPECT_FALSE(shmipc_port_would_wait(receiver.get())) << laps;
    EXPECT_FALSE(shmipc_port_would_wait(sender.get())) << laps;
    EXPECT_EQ(sender.Send("c"), 0) << laps;
    EXPECT_EQ(receiver.Receive(), "b") << laps;
    EXPECT_EQ(receiver.Receive(), "c") << laps;
    EXPECT_EQ(receiver.Receive(), "ETIMEDOUT") << laps;
    EXPECT_TRUE(shmipc_port_would_wait(receiver.get())) << laps;
    EXPECT_EQ(Problems(region_), "");
  }
}

// -- Shut, and damage.

// SPSC's receiver cannot see what is reserved: it is told that nothing comes,
// so the sender must not be told that it was sent.
TEST_P(ChannelPeerTest, WhatIsCommittedAfterShutIsNotSaidToBeSent) {
  Port sender(region_, Channel(), SHMIPC_SENDER);
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  void *place;
  ASSERT_EQ(shmipc_port_reserve(sender.get(), 4, &place, 0), 0);
  memcpy(place, "late", 4);
  ASSERT_EQ(shmipc_port_shut(receiver.get()), 0);
  EXPECT_EQ(receiver.Receive(), IsSpsc() ? "EPIPE" : "ETIMEDOUT");
  EXPECT_EQ(shmipc_port_commit(sender.get(), 4), IsSpsc() ? -EPIPE : 0);
  if (!IsSpsc()) {
    EXPECT_EQ(receiver.Receive(), "late");
    EXPECT_EQ(receiver.Receive(), "EPIPE");
  }
  EXPECT_EQ(sender.Send("x"), -EPIPE);
}

// A bit of its slot's word is not true: it lives all the same.
TEST_P(ChannelPeerTest, OneWhoseSlotIsDamagedIsAlive) {
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  shmipc_region_t *second = own_.Attach();
  ASSERT_NE(second, nullptr);
  {
    Port sender(second, shmipc_ref_get(second, ref_, 1), SHMIPC_SENDER);
    shmipc_slot_t *slot = shmipc_slot_of(region_, second->slot);
    ASSERT_NE(slot->word & SHMIPC_SLOT_TAKEN, 0u);
    slot->word ^= SHMIPC_SLOT_TAKEN;
    receiver.get()->checked_ns = 0;
    EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
    EXPECT_EQ(sender.Send("x"), 0);
    EXPECT_EQ(receiver.Receive(), "x");
    slot->word ^= SHMIPC_SLOT_TAKEN;
  }
  shmipc_region_close(second);
}

// -- Poll loops.

// Nobody sleeps, so whoever sends has nobody to notify.
TEST_P(ChannelPeerTest, ArmThatFailsLeavesNothingToNotify) {
  Port sender(region_, Channel(), SHMIPC_SENDER);
  Port receiver(region_, Channel(), SHMIPC_RECEIVER);
  ASSERT_GE(shmipc_port_fd(receiver.get()), 0);
  ASSERT_EQ(sender.Send("x"), 0);
  EXPECT_EQ(shmipc_port_arm(receiver.get()), -EAGAIN);
  EXPECT_EQ(receiver.get()->entry->is_armed, 0u);
  EXPECT_EQ(Channel()->sides[SHMIPC_RECEIVER - 1].event.word & 1, 0u);
}

}  // namespace
