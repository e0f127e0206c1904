// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The barriers that ports have done for each other (port_fence.c): what they do
// where the kernel refuses, what they ask of it and when, and the mode of a
// side. The system calls of the library come here first; a refusal is what a
// filter of system calls gives. What the barriers are for is in
// port_fence_model_test and, on this machine, in channel_thread_test.

#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <ctime>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/channel_internal.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

std::atomic<bool> refuses_to_register;
std::atomic<bool> refuses_barriers;
std::atomic<int> registrations;
std::atomic<int> barriers;
std::atomic<int> sleeps;
std::atomic<int64_t> longest_sleep_ns;

}  // namespace

extern "C" long syscall(long number, ...) {
  long a[6];
  va_list list;
  va_start(list, number);
  for (long &one : a) {
    one = va_arg(list, long);
  }
  va_end(list);
  if (number == SYS_membarrier) {
    bool registers = a[0] == MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
    (registers ? registrations : barriers)++;
    if (registers ? refuses_to_register : refuses_barriers) {
      errno = EPERM;
      return -1;
    }
  }
  if (number == SYS_futex && a[1] == FUTEX_WAIT && a[3] != 0) {
    const auto *timeout = reinterpret_cast<const struct timespec *>(a[3]);
    int64_t ns = timeout->tv_sec * INT64_C(1000000000) + timeout->tv_nsec;
    longest_sleep_ns = std::max<int64_t>(longest_sleep_ns, ns);
    sleeps++;
  }
  return shmipc_testing::RawCall(number, a);
}

namespace {

using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Process;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kLong = 20000000000;

class PortFenceTest : public testing::TestWithParam<shmipc_channel_kind_t> {
 protected:
  PortFenceTest() {
    shmipc_channel_options_t options = {};
    options.kind = GetParam();
    options.message_bytes = 32;
    options.capacity_messages = 4;
    if (shmipc_channel_create(own_.region(), "channel", &options, &ref_) != 0) {
      abort();
    }
    refuses_to_register = false;
    refuses_barriers = false;
    registrations = 0;
    barriers = 0;
    sleeps = 0;
    longest_sleep_ns = 0;
  }
  ~PortFenceTest() override {
    refuses_to_register = false;
    refuses_barriers = false;
  }
  void *Channel() const {
    return shmipc_ref_get(own_.region(), ref_, 1);
  }
  shmipc_side_t *Side(shmipc_role_t role) const {
    return &static_cast<shmipc_channel_t *>(Channel())->sides[role - 1];
  }
  uint32_t Mode(shmipc_role_t role) const {
    return SHMIPC_FENCE_MODE(Side(role)->fence);
  }
  bool IsSpsc() const {
    return GetParam() == SHMIPC_SPSC;
  }

  Watchdog watchdog_{60};
  TestRegion own_{SHMIPC_MEMFD, 4096, [](auto *o) {
                    o->heap_bytes = 1 << 20;
                  }};
  shmipc_ref_t ref_ = {};
};

INSTANTIATE_TEST_SUITE_P(All, PortFenceTest, testing::ValuesIn(kKinds),
                         channel_testing::ParamName);

// -- Registering.

TEST_P(PortFenceTest, OpenRegisters) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  EXPECT_EQ(registrations, 1);
  EXPECT_EQ(sender.get()->always_fences, 0u);
}

// Whether a child has its parent's registration or not: it does not rely on it.
TEST_P(PortFenceTest, AChildRegistersItself) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Process child([&]() -> int {
    shmipc_region_t *region = own_.AttachInChild();
    registrations = 0;
    Port receiver(region, shmipc_ref_get(region, ref_, 1), SHMIPC_RECEIVER);
    return registrations == 1 && receiver.get()->always_fences == 0 ? 0 : 1;
  });
  EXPECT_EQ(child.Wait(), 0);
}

// It has its own barrier, and so is heard whatever the mode.
TEST_P(PortFenceTest, OneThatCannotRegisterAlwaysHasItsOwnBarrier) {
  refuses_to_register = true;
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  EXPECT_NE(sender.get()->always_fences, 0u);
  EXPECT_NE(receiver.get()->always_fences, 0u);
  ASSERT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_PLAIN));
  uint32_t before = sender.get()->num_quiet;
  ASSERT_EQ(sender.Send("x"), 0);
  EXPECT_EQ(sender.get()->num_quiet, before + 1) << "it had no barrier";
  EXPECT_EQ(receiver.Receive(), "x");
  refuses_to_register = false;
  sender.Reopen();
  ASSERT_EQ(sender.Send("x"), 0);
  EXPECT_EQ(sender.get()->num_quiet, 0u) << "it had a barrier for nothing";
}

// -- Sleeping.

TEST_P(PortFenceTest, OneThatMayCallSleepsForWholeSlices) {
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  EXPECT_EQ(receiver.Receive(30000000), "ETIMEDOUT");
  EXPECT_GT(longest_sleep_ns, 1000000);
  // One call; from then on the mode says it.
  EXPECT_EQ(barriers, 1);
  EXPECT_GT(sleeps, 1);
  EXPECT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_FENCED));
}

TEST_P(PortFenceTest, OneThatMayNotCallSleepsForAMillisecond) {
  refuses_barriers = true;
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  EXPECT_EQ(receiver.Receive(30000000), "ETIMEDOUT");
  EXPECT_GT(sleeps, 1);
  EXPECT_LE(longest_sleep_ns, 1000000);
  // It could not make sure of that, but those that notify have barriers.
  EXPECT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_ASKED));
}

// Who has made sure of it does so for all.
TEST_P(PortFenceTest, OneThatMayNotCallBelievesOthers) {
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  EXPECT_EQ(receiver.Receive(10000000), "ETIMEDOUT");
  receiver.Reopen();
  refuses_barriers = true;
  longest_sleep_ns = 0;
  EXPECT_EQ(receiver.Receive(30000000), "ETIMEDOUT");
  EXPECT_GT(longest_sleep_ns, 1000000);
}

TEST_P(PortFenceTest, ArmHasTheBarrierToo) {
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  ASSERT_GE(shmipc_port_fd(receiver.get()), 0);
  ASSERT_EQ(shmipc_port_arm(receiver.get()), 0);
  EXPECT_EQ(barriers, 1);
  EXPECT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_FENCED));
}

// -- Modes.

TEST_P(PortFenceTest, ManyThatFindNobodyMakeItPlainAgain) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  EXPECT_EQ(receiver.Receive(10000000), "ETIMEDOUT");
  ASSERT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_FENCED));
  uint32_t count = SHMIPC_FENCE_COUNT(Side(SHMIPC_RECEIVER)->fence);
  // The first finds the bit.
  for (int i = 0; i < 64; i++) {
    ASSERT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_FENCED));
    ASSERT_EQ(sender.Send("x"), 0);
    ASSERT_EQ(receiver.Receive(), "x");
  }
  ASSERT_EQ(sender.Send("x"), 0);
  ASSERT_EQ(receiver.Receive(), "x");
  EXPECT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_PLAIN));
  EXPECT_EQ(SHMIPC_FENCE_COUNT(Side(SHMIPC_RECEIVER)->fence), count + 1);
  // And one that sleeps then asks again.
  barriers = 0;
  EXPECT_EQ(receiver.Receive(10000000), "ETIMEDOUT");
  EXPECT_EQ(barriers, 1);
  EXPECT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_FENCED));
}

// Only those in turn count.
TEST_P(PortFenceTest, OneThatFindsSomebodyBeginsToCountAgain) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  for (int i = 0; i < 4; i++) {
    // It leaves its bit.
    EXPECT_EQ(receiver.Receive(10000000), "ETIMEDOUT");
    for (int k = 0; k < 40; k++) {
      ASSERT_EQ(sender.Send("x"), 0);
      ASSERT_EQ(receiver.Receive(), "x");
    }
    EXPECT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_FENCED)) << i;
  }
}

// Whatever the mode says, and whatever count, nobody stays asleep.
TEST_P(PortFenceTest, ForgedModesDelayAtMost) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  for (uint32_t forged : {0u, 1u, 2u, 3u, 0xfffffffcu, 0xffffffffu}) {
    Side(SHMIPC_RECEIVER)->fence = forged;
    std::thread other([&] {
      Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
      EXPECT_EQ(receiver.Receive(kLong), "x");
    });
    __atomic_store_n(&Side(SHMIPC_RECEIVER)->fence, forged, __ATOMIC_RELAXED);
    EXPECT_EQ(sender.Send("x"), 0);
    other.join();
  }
}

// -- Shut: what was sent before it is there, in SPSC by a barrier of others.

TEST_P(PortFenceTest, AReceiverHasTheBarrierOnceBeforeItIsToldOfShut) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  ASSERT_EQ(sender.Send("x"), 0);
  ASSERT_EQ(shmipc_port_shut(sender.get()), 0);
  EXPECT_EQ(receiver.Receive(), "x");
  EXPECT_EQ(barriers, 0);
  EXPECT_EQ(receiver.Receive(), "EPIPE");
  EXPECT_EQ(receiver.Receive(), "EPIPE");
  EXPECT_EQ(barriers, IsSpsc() ? 1 : 0);
}

}  // namespace
