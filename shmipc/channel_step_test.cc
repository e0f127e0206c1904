// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at every instruction of a send and of a receive, copied and in place,
// of opening and closing a port, of shutting, and of the recovery of the dead:
// a child is single-stepped by ptrace and killed after k steps, for each k.
// After each the survivor goes on at once, at both ends: every message that was
// committed comes, whole, in order, once (what was peeked at by the dead:
// again) and there is as much room as in a new channel.
//
// All instructions of sending and receiving, some of the others, another set
// each time; SHMIPC_STRIDE=1 for all, or every so many. Skipped where ptrace is
// not permitted.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::Fill;
using channel_testing::KindName;
using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Backends;
using shmipc_testing::Count;
using shmipc_testing::NameOf;
using shmipc_testing::NowNs;
using shmipc_testing::Outcome;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::StepAndKill;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kWait = 1000000000;
constexpr size_t kBytes = 100;
constexpr size_t kCapacity = 4;

using Params = std::tuple<shmipc_channel_kind_t, shmipc_backend_t>;

class ChannelStepTest : public testing::TestWithParam<Params> {
 protected:
  using Operation = std::function<void(shmipc_region_t *region, void *channel,
                                       shmipc_port_t *port)>;

  ChannelStepTest() {
    shmipc_channel_options_t options = {};
    options.kind = std::get<0>(GetParam());
    options.message_bytes = kBytes;
    options.capacity_messages = kCapacity;
    options.max_ports = 4;
    if (shmipc_channel_create(region_, "channel", &options, &ref_) != 0) {
      abort();
    }
  }
  bool IsSpsc() const {
    return std::get<0>(GetParam()) == SHMIPC_SPSC;
  }

  // The child opens the end of `role` (0: none), and `operation` is stepped.
  // Before it the survivor sends what it gets to receive. At most `most_extra`
  // messages of the child may have come, and `most_gone` of ours be received by
  // it.
  void EveryStep(const char *what, uint64_t stride, int role, size_t most_extra,
                 size_t most_gone, const Operation &operation,
                 const std::function<void()> &before = {}) {
    stride = std::max<uint64_t>(1, Count("SHMIPC_STRIDE", stride));
    std::mt19937_64 random(Seed());
    uint64_t kills = 0;
    uint64_t step = stride > 1 ? random() % stride : 0;
    bool was_extra[2] = {false, false};
    for (;; step += stride) {
      {
        Port sender(region_, Channel(region_), SHMIPC_SENDER);
        ASSERT_EQ(sender.Send("one"), 0);
        ASSERT_EQ(sender.Send("two"), 0);
      }
      if (before) {
        before();
      }
      Outcome outcome = StepAndKill(step, [&] {
        shmipc_region_t *region = own_.AttachInChild();
        shmipc_port_t *port = nullptr;
        if (role != 0 &&
            shmipc_port_open(region, Channel(region),
                             static_cast<shmipc_role_t>(role), &port) != 0) {
          _exit(1);
        }
        raise(SIGSTOP);
        operation(region, Channel(region), port);
      });
      if (outcome == Outcome::kNotPermitted) {
        GTEST_SKIP() << "ptrace is not permitted";
      }
      bool has_extra = false;
      ASSERT_EQ(GoOn(kills % 2 == 0, most_extra, most_gone, &has_extra), "")
          << what << " killed after " << step << " steps";
      was_extra[has_extra] = true;
      if (outcome == Outcome::kCameThrough) {
        break;
      }
      kills++;
    }
    EXPECT_GE(kills, 3u);
    if (most_extra != 0 && stride == 1) {
      EXPECT_TRUE(was_extra[0] && was_extra[1]) << "both have to be seen";
    }
    printf("%s %s %s: killed at %" PRIu64 " of %" PRIu64
           " instructions, 0 hangs, 0 messages lost or half, worst stall "
           "%.2f ms\n",
           KindName(std::get<0>(GetParam())), NameOf(std::get<1>(GetParam())),
           what, kills, step, static_cast<double>(worst_stall_ns_) * 1e-6);
  }

  void *Channel(shmipc_region_t *region) const {
    return shmipc_ref_get(region, ref_, 1);
  }

  // What is wrong. Messages: ours that the child has not received, and what the
  // child has sent, in this order; then as many as there is room for.
  std::string GoOn(bool recovers_first, size_t most_extra, size_t most_gone,
                   bool *has_extra) {
    if (recovers_first && shmipc_region_recover(region_) < 0) {
      return "cannot recover";
    }
    int64_t start = NowNs();
    Port receiver(region_, Channel(region_), SHMIPC_RECEIVER);
    std::vector<std::string> came;
    for (;;) {
      // Twice: a death may be told in between.
      std::string message = receiver.Receive();
      if (message == "EOWNERDEAD" || message == "EPIPE") {
        continue;
      }
      if (message == "ETIMEDOUT") {
        break;
      }
      came.push_back(message);
    }
    worst_stall_ns_ = std::max(worst_stall_ns_, NowNs() - start);
    const std::string ours[] = {"one", "two"};
    size_t at = 0;
    while (at < 2 && (came.empty() || came[0] != ours[at])) {
      at++;
    }
    if (at > most_gone) {
      return "a message of ours is lost";
    }
    size_t i = 0;
    for (; at < 2; at++, i++) {
      if (i >= came.size() || came[i] != ours[at]) {
        return "a message of ours is lost or late";
      }
    }
    *has_extra = i < came.size();
    if (came.size() - i > most_extra) {
      return "too many messages";
    }
    for (; i < came.size(); i++) {
      if (came[i] != Fill(kBytes, 7)) {
        return "half a message";
      }
    }
    return FillUp(&receiver);
  }

  // As much room as in a new one, and everything comes.
  std::string FillUp(Port *receiver) {
    Port sender(region_, Channel(region_), SHMIPC_SENDER);
    // The channel may have been shut: it is ours to open again, for the test.
    size_t sent = 0;
    int64_t start = NowNs();
    int status;
    while ((status = sender.Send(Fill(kBytes, sent))) == 0) {
      sent++;
    }
    if (status != -ETIMEDOUT || sent < kCapacity || sent > kCapacity + 1) {
      return "room for " + std::to_string(sent) + " messages, " +
             std::to_string(status);
    }
    for (size_t i = 0; i < sent; i++) {
      if (receiver->Receive(kWait) != Fill(kBytes, i)) {
        return "what was sent after does not come";
      }
    }
    worst_stall_ns_ = std::max(worst_stall_ns_, NowNs() - start);
    sender.Close();
    receiver->Close();
    if (shmipc_region_recover(region_) < 0) {
      return "cannot recover";
    }
    return Problems(region_);
  }

  // Of what hardly depends on the kind of region.
  static uint64_t ShortStride() {
    return std::get<1>(GetParam()) == SHMIPC_MEMFD ? 1 : 7;
  }
  // What does not depend on the kind of region.
  static bool IsForLater() {
    return std::get<1>(GetParam()) != SHMIPC_MEMFD &&
           Count("SHMIPC_STRIDE", 0) == 0;
  }

  Watchdog watchdog_{
      static_cast<unsigned int>(Count("SHMIPC_STRIDE", 0) != 0 ? 7200 : 240)};
  TestRegion own_{std::get<1>(GetParam()), 4096, [](auto *o) {
                    o->heap_bytes = 4 << 16;
                    o->max_processes = 8;
                    o->max_threads = 8;
                  }};
  shmipc_region_t *region_ = own_.region();
  shmipc_ref_t ref_ = {};
  int64_t worst_stall_ns_ = 0;
};

INSTANTIATE_TEST_SUITE_P(All, ChannelStepTest,
                         testing::Combine(testing::ValuesIn(kKinds),
                                          testing::ValuesIn(Backends())),
                         [](const testing::TestParamInfo<Params> &i) {
                           return std::string(KindName(std::get<0>(i.param))) +
                                  "_" + NameOf(std::get<1>(i.param));
                         });

TEST_P(ChannelStepTest, Send) {
  std::string message = Fill(kBytes, 7);
  EveryStep("send", ShortStride(), SHMIPC_SENDER, 1, 0,
            [&](auto *, void *, shmipc_port_t *port) {
              (void)!shmipc_port_send(port, message.data(), kBytes, 0);
            });
}

TEST_P(ChannelStepTest, Receive) {
  EveryStep("receive", ShortStride(), SHMIPC_RECEIVER, 0, 1,
            [](auto *, void *, shmipc_port_t *port) {
              char buffer[kBytes];
              size_t len;
              (void)!shmipc_port_receive(port, buffer, kBytes, &len, 0);
            });
}

TEST_P(ChannelStepTest, InPlace) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  std::string message = Fill(kBytes, 7);
  EveryStep("reserve, abort, reserve, commit", 3, SHMIPC_SENDER, 1, 0,
            [&](auto *, void *, shmipc_port_t *port) {
              void *data;
              (void)!shmipc_port_reserve(port, kBytes, &data, 0);
              memset(data, 0xff, kBytes);
              shmipc_port_abort(port);
              (void)!shmipc_port_reserve(port, kBytes, &data, 0);
              memcpy(data, message.data(), kBytes);
              shmipc_port_commit(port, kBytes);
            });
  EveryStep("peek, release", 1, SHMIPC_RECEIVER, 0, 1,
            [](auto *, void *, shmipc_port_t *port) {
              const void *data;
              size_t len;
              (void)!shmipc_port_peek(port, &data, &len, 0);
              shmipc_port_release(port);
            });
}

TEST_P(ChannelStepTest, OpenAndCloseWithAMessage) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  EveryStep("open, reserve, close", 101, 0, 0, 0,
            [](auto *region, void *channel, shmipc_port_t *port) {
              void *data;
              (void)!shmipc_port_open(region, channel, SHMIPC_SENDER, &port);
              (void)!shmipc_port_reserve(port, kBytes, &data, 0);
              shmipc_port_close(port);
            });
  // One that gives a message back changes the order in MPMC, so it has the
  // second one.
  EveryStep("open, peek, close", 101, 0, 0, 1,
            [](auto *region, void *channel, shmipc_port_t *port) {
              char buffer[kBytes];
              size_t len;
              const void *data;
              (void)!shmipc_port_open(region, channel, SHMIPC_RECEIVER, &port);
              (void)!shmipc_port_receive(port, buffer, kBytes, &len, 0);
              (void)!shmipc_port_peek(port, &data, &len, 0);
              shmipc_port_close(port);
            });
}

// The child recovers one that died with a message at hand, and dies in it.
TEST_P(ChannelStepTest, RecovererIsKilledToo) {
  if (IsForLater()) {
    GTEST_SKIP() << "memfd; all kinds with SHMIPC_STRIDE";
  }
  auto dies = [this](shmipc_role_t role) {
    Process child([&] {
      shmipc_region_t *region = own_.AttachInChild();
      shmipc_port_t *port;
      void *data;
      const void *seen;
      size_t len;
      (void)!shmipc_port_open(region, Channel(region), role, &port);
      if (role == SHMIPC_SENDER) {
        (void)!shmipc_port_reserve(port, kBytes, &data, 0);
      } else {
        (void)!shmipc_port_peek(port, &seen, &len, 0);
      }
      return 0;
    });
    child.Wait();
  };
  for (shmipc_role_t role : {SHMIPC_SENDER, SHMIPC_RECEIVER}) {
    EveryStep(
        role == SHMIPC_SENDER ? "recovery of a sender"
                              : "recovery of a receiver",
        41, 0, 0, 0,
        [role](auto *region, void *channel, shmipc_port_t *port) {
          // Opening recovers.
          (void)!shmipc_port_open(region, channel, role, &port);
        },
        [&] { dies(role); });
  }
}

}  // namespace
