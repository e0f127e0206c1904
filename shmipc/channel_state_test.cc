// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a channel's words may say that its calls do not often make them say:
// left by one that died between two steps, by years of use, or by damage. Each
// is written by hand.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/channel_internal.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::Fill;
using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Count;
using shmipc_testing::NowNs;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::Shared;
using shmipc_testing::Stepped;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr size_t kBytes = 32;
constexpr int64_t kLong = 20000000000;

class ChannelStateTest : public testing::TestWithParam<shmipc_channel_kind_t> {
 protected:
  ChannelStateTest() {
    channel_ = Create("channel", false);
  }
  shmipc_channel_t *Create(const char *name, bool is_fixed) {
    shmipc_channel_options_t options = {};
    options.kind = GetParam();
    options.message_bytes = kBytes;
    options.capacity_messages = 4;
    options.is_fixed = is_fixed;
    if (shmipc_channel_create(region_, name, &options, &ref_) != 0) {
      abort();
    }
    return static_cast<shmipc_channel_t *>(shmipc_ref_get(region_, ref_, 1));
  }
  bool IsSpsc() const {
    return GetParam() == SHMIPC_SPSC;
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
  void OneDies(shmipc_role_t role, bool has) {
    Process child([&]() -> int {
      shmipc_port_t *port = OpenInChild(role);
      const void *data;
      size_t len;
      int status = has ? shmipc_port_peek(port, &data, &len, 0) : 0;
      _exit(status == 0 ? 0 : 1);
    });
    ASSERT_EQ(child.Wait(), 0);
  }
  // One that has asked for its peers just now.
  static void HasAsked(const Port &port) {
    port.get()->checked_ns = NowNs() + 1000000000;
  }
  static size_t NumCells(const Port &port) {
    return port.get()->view.mask + 1;
  }
  static uint64_t &Word(const Port &port, uint64_t cell) {
    return shmipc_cell_of(&port.get()->view, cell)->word;
  }

  Watchdog watchdog_{120};
  TestRegion own_{SHMIPC_MEMFD, 4096, [](auto *o) {
                    o->heap_bytes = 1 << 20;
                  }};
  shmipc_region_t *region_ = own_.region();
  shmipc_ref_t ref_ = {};
  shmipc_channel_t *channel_;
};

INSTANTIATE_TEST_SUITE_P(All, ChannelStateTest, testing::ValuesIn(kKinds),
                         channel_testing::ParamName);

class MpmcStateTest : public ChannelStateTest {};

INSTANTIATE_TEST_SUITE_P(All, MpmcStateTest, testing::Values(SHMIPC_MPMC));

// -- Left by the dead.

TEST_P(MpmcStateTest, ARecovererThatDiedBeforeItCountedHidesNoMessage) {
  Port sender(region_, channel_, SHMIPC_SENDER);
  Port receiver(region_, channel_, SHMIPC_RECEIVER);
  ASSERT_EQ(sender.Send("one"), 0);
  OneDies(SHMIPC_RECEIVER, true);
  // It has given the message back, and told nobody.
  uint64_t *word = nullptr;
  for (uint64_t i = 0; i < NumCells(receiver); i++) {
    if (SHMIPC_CELL_STATE(Word(receiver, i)) == SHMIPC_CELL_READING) {
      word = &Word(receiver, i);
    }
  }
  ASSERT_NE(word, nullptr);
  *word = SHMIPC_CELL_WORD(SHMIPC_CELL_LAP(*word), 0, SHMIPC_CELL_RETURNED);
  channel_->returned = 0;
  EXPECT_EQ(receiver.Receive(kLong), "one");
}

TEST_P(MpmcStateTest, AllMessagesOfSeveralDeadComeAgain) {
  Port sender(region_, channel_, SHMIPC_SENDER);
  Port receiver(region_, channel_, SHMIPC_RECEIVER);
  std::vector<std::string> sent = {"a", "b", "c"};
  std::vector<Process> have;
  Shared<std::atomic<uint32_t>> num_ready;
  for (const std::string &message : sent) {
    ASSERT_EQ(sender.Send(message), 0);
    have.emplace_back([&]() -> int {
      const void *data;
      size_t len;
      if (shmipc_port_peek(OpenInChild(SHMIPC_RECEIVER), &data, &len, 0) == 0) {
        ++*num_ready;
      }
      pause();
      return 0;
    });
  }
  while (*num_ready != sent.size()) {
    std::this_thread::yield();
  }
  for (Process &one : have) {
    one.Kill();
  }
  // Opening recovers; the count wraps around with the last of them.
  channel_->returned = UINT32_MAX - 2;
  sender.Reopen();
  EXPECT_NE(channel_->returned, 0u);
  std::vector<std::string> came;
  for (size_t i = 0; i < sent.size(); i++) {
    came.push_back(receiver.Receive(kLong));
  }
  std::sort(came.begin(), came.end());
  EXPECT_EQ(came, sent);
  EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
  EXPECT_EQ(Problems(region_), "");
}

TEST_P(MpmcStateTest, OneThatPollsSeesWhatADeadReceiverHad) {
  Port sender(region_, channel_, SHMIPC_SENDER);
  Port receiver(region_, channel_, SHMIPC_RECEIVER);
  ASSERT_EQ(sender.Send("one"), 0);
  OneDies(SHMIPC_RECEIVER, true);
  ASSERT_EQ(sender.Send("two"), 0);
  HasAsked(receiver);
  ASSERT_EQ(receiver.Receive(), "two");
  ASSERT_GE(shmipc_port_fd(receiver.get()), 0);
  EXPECT_EQ(shmipc_port_arm(receiver.get()), 0);
  sender.Reopen();  // That recovers.
  EXPECT_EQ(shmipc_port_arm(receiver.get()), -EAGAIN);
  EXPECT_EQ(receiver.Receive(), "one");
  // A look that finds none ends it.
  EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
  EXPECT_EQ(shmipc_port_arm(receiver.get()), 0);
}

TEST_P(ChannelStateTest, OneThatPollsIsToldOfADeath) {
  Port receiver(region_, channel_, SHMIPC_RECEIVER);
  ASSERT_GE(shmipc_port_fd(receiver.get()), 0);
  OneDies(SHMIPC_SENDER, false);
  HasAsked(receiver);
  EXPECT_EQ(shmipc_port_arm(receiver.get()), 0);
  Port(region_, channel_, SHMIPC_SENDER).Close();
  EXPECT_EQ(shmipc_port_arm(receiver.get()), -EAGAIN);
  EXPECT_EQ(receiver.Receive(), "EOWNERDEAD");
  EXPECT_EQ(shmipc_port_arm(receiver.get()), 0);
}

// Were the port free first, the next recoverer would not count its death.
TEST_P(ChannelStateTest, ADeathIsCountedBeforeThePortIsFree) {
  Stepped recovers([&] {
    shmipc_port_t *port = OpenInChild(SHMIPC_RECEIVER);
    raise(SIGSTOP);
    char buffer[kBytes];
    size_t len;
    (void)!shmipc_port_receive(port, buffer, sizeof(buffer), &len, 0);
  });
  if (!recovers.is_stopped()) {
    GTEST_SKIP() << "ptrace is not permitted";
  }
  OneDies(SHMIPC_SENDER, false);
  shmipc_port_entry_t *dead = nullptr;
  for (uint32_t i = 0; i < channel_->geometry.max_ports; i++) {
    if (SHMIPC_PORT_ROLE(channel_->ports[i].word) == SHMIPC_SENDER) {
      dead = &channel_->ports[i];
    }
  }
  ASSERT_NE(dead, nullptr);
  ASSERT_EQ(channel_->deaths[SHMIPC_SENDER - 1], 0u);
  ASSERT_TRUE(
      recovers.StepUntil([&] { return SHMIPC_PORT_OWNER(dead->word) == 0; }));
  EXPECT_EQ(channel_->deaths[SHMIPC_SENDER - 1], 1u);
  recovers.GoOn();
}

TEST_P(ChannelStateTest, DeathsAreToldWhenTheirCountWrapsAround) {
  channel_->deaths[0] = channel_->deaths[1] = UINT32_MAX;
  Port receiver(region_, channel_, SHMIPC_RECEIVER);
  for (int i = 0; i < 3; i++) {
    OneDies(SHMIPC_SENDER, false);
    EXPECT_EQ(receiver.Receive(kLong), "EOWNERDEAD");
    EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
  }
}

// -- Left by years.

TEST_P(ChannelStateTest, FilledAThousandTimes) {
  const uint64_t num_fills = Count("SHMIPC_FILLS", 1000);
  std::mt19937_64 random(Seed());
  Port sender(region_, channel_, SHMIPC_SENDER);
  Port receiver(region_, channel_, SHMIPC_RECEIVER);
  for (uint64_t i = 0; i < num_fills; i++) {
    // To where even the shortest does not go in.
    std::vector<std::string> sent;
    for (size_t len = kBytes + 1; len-- > 0;) {
      len = random() % 4 == 0 ? len : random() % (len + 1);
      while (sender.Send(Fill(len, i)) == 0) {
        sent.push_back(Fill(len, i));
      }
    }
    ASSERT_GE(sent.size(), 4u);
    ASSERT_EQ(sender.Send(""), -ETIMEDOUT);
    for (const std::string &message : sent) {
      ASSERT_EQ(receiver.Receive(), message) << i;
    }
    ASSERT_EQ(receiver.Receive(), "ETIMEDOUT");
  }
  EXPECT_EQ(Problems(region_), "");
}

// Others have gone on for that many laps, and the hints say nothing of it.
TEST_P(MpmcStateTest, AnIdlePortFindsItsPlaceWithoutAHint) {
  for (uint32_t laps : {1000u, 0x7ffffff0u, 0x80000005u}) {
    Port sender(region_, channel_, SHMIPC_SENDER);
    Port receiver(region_, channel_, SHMIPC_RECEIVER);
    ASSERT_EQ(sender.Send("a"), 0);
    ASSERT_EQ(receiver.Receive(), "a");
    const shmipc_view_t &view = sender.get()->view;
    uint32_t lap = shmipc_lap_of(&view, sender.get()->position) + laps;
    for (uint64_t i = 0; i < NumCells(sender); i++) {
      Word(sender, i) = SHMIPC_CELL_WORD(lap, 0, SHMIPC_CELL_FREE);
    }
    channel_->sender_hint = channel_->head = 0;
    EXPECT_EQ(sender.Send("b"), 0) << laps;
    EXPECT_EQ(receiver.Receive(), "b") << laps;
    EXPECT_EQ(Problems(region_), "");
  }
}

// -- Damage.

TEST_P(MpmcStateTest, HintsThatAreNotTrueChangeNothing) {
  for (uint64_t ahead : {1, 40, 1 << 20}) {
    Port sender(region_, channel_, SHMIPC_SENDER);
    ASSERT_EQ(sender.Send("a"), 0);
    channel_->sender_hint = channel_->head = sender.get()->position + ahead;
    Port other(region_, channel_, SHMIPC_SENDER);
    Port receiver(region_, channel_, SHMIPC_RECEIVER);
    EXPECT_EQ(other.Send("b"), 0) << ahead;
    EXPECT_EQ(receiver.Receive(), "a") << ahead;
    EXPECT_EQ(receiver.Receive(), "b") << ahead;
    EXPECT_EQ(Problems(region_), "");
  }
}

TEST_P(ChannelStateTest, AReceiverThatIsSaidToBeFurtherThanTheSenderIsDamage) {
  if (!IsSpsc()) {
    GTEST_SKIP() << "its hints are checked";
  }
  Port sender(region_, channel_, SHMIPC_SENDER);
  std::vector<std::string> sent;
  while (sender.Send(Fill(kBytes, sent.size())) == 0) {
    sent.push_back(Fill(kBytes, sent.size()));
  }
  // There would be room, over messages that nobody has received.
  uint64_t head = channel_->head;
  uint64_t ring_bytes = sender.get()->view.ring_bytes;
  channel_->head = (sender.get()->position + SHMIPC_SPSC_UNIT) % ring_bytes;
  EXPECT_EQ(sender.Send(Fill(kBytes, 99)), -EPROTO);
  channel_->head = head;
  Port receiver(region_, channel_, SHMIPC_RECEIVER);
  for (const std::string &message : sent) {
    EXPECT_EQ(receiver.Receive(), message);
  }
}

TEST_P(ChannelStateTest, ALengthThatIsNotTheFixedOneIsDamage) {
  shmipc_channel_t *fixed = Create("fixed", true);
  Port sender(region_, fixed, SHMIPC_SENDER);
  Port receiver(region_, fixed, SHMIPC_RECEIVER);
  for (uint32_t len : {0u, 8u, 31u, 33u}) {
    ASSERT_EQ(sender.Send(Fill(kBytes, len)), 0);
    if (IsSpsc()) {
      uint64_t *word =
          shmipc_record_word(&receiver.get()->view, receiver.get()->position);
      ASSERT_EQ(*word, SHMIPC_RECORD_OF(kBytes));
      *word = SHMIPC_RECORD_OF(len);
      EXPECT_EQ(receiver.Receive(), "EPROTO") << len;
      *word = SHMIPC_RECORD_OF(kBytes);
      EXPECT_EQ(receiver.Receive(), Fill(kBytes, len));
      continue;
    }
    shmipc_cell_of(&receiver.get()->view, receiver.get()->position)->len = len;
    EXPECT_EQ(receiver.Receive(), "EPROTO") << len;
    // It is dropped, and those behind it come.
    ASSERT_EQ(sender.Send(Fill(kBytes, 100 + len)), 0);
    EXPECT_EQ(receiver.Receive(), Fill(kBytes, 100 + len));
  }
}

}  // namespace
