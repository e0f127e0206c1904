// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The barriers that ports have done for each other (port_fence.c): what they do
// where the kernel refuses, what they ask of it and when, and the mode of a
// side. The system calls of the library come here first; a refusal is what a
// filter of system calls gives. What is done from inside such a call is what
// another processor does in that time. What each barrier is for is shown by
// port_fence_model_test alone: whether a store is still in a buffer is a matter
// of luck, so channel_thread_test may pass without one.

#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <ctime>
#include <functional>
#include <string>
#include <thread>
#include <utility>

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
// Sleeps have no end but a wake-up.
std::atomic<bool> sleeps_are_endless;
std::atomic<int64_t> refused_ns;
// Each is called once, then forgotten: from inside the next barrier in all, and
// at the end of the next pause.
std::function<void()> in_barrier;
std::function<void()> in_pause;

void CallOnce(std::function<void()> *hook) {
  std::function<void()> work = std::exchange(*hook, nullptr);
  if (work) {
    work();
  }
}

}  // namespace

extern "C" long syscall(long number, ...) {
  long a[6];
  va_list list;
  va_start(list, number);
  shmipc_testing::ReadArguments(list, &a);
  va_end(list);
  if (number == SYS_membarrier) {
    bool registers = a[0] == MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
    (registers ? registrations : barriers)++;
    if (!registers) {
      CallOnce(&in_barrier);
    }
    if (registers ? refuses_to_register : refuses_barriers) {
      refused_ns = shmipc_testing::NowNs();
      errno = EPERM;
      return -1;
    }
  }
  if (number == SYS_futex && a[1] == FUTEX_WAIT && a[3] != 0) {
    const auto *timeout = reinterpret_cast<const struct timespec *>(a[3]);
    int64_t ns = timeout->tv_sec * INT64_C(1000000000) + timeout->tv_nsec;
    longest_sleep_ns = std::max<int64_t>(longest_sleep_ns, ns);
    sleeps++;
    if (sleeps_are_endless) {
      a[3] = 0;
    }
  }
  return shmipc_testing::RawCall(number, a);
}

extern "C" int nanosleep(const struct timespec *time, struct timespec *left) {
  const long a[6] = {reinterpret_cast<long>(time),
                     reinterpret_cast<long>(left)};
  long result = shmipc_testing::RawCall(SYS_nanosleep, a);
  CallOnce(&in_pause);
  return static_cast<int>(result);
}

extern "C" int clock_nanosleep(clockid_t clock, int flags,
                               const struct timespec *time,
                               struct timespec *left) {
  const long a[6] = {clock, flags, reinterpret_cast<long>(time),
                     reinterpret_cast<long>(left)};
  int saved = errno;
  int status = shmipc_testing::RawCall(SYS_clock_nanosleep, a) == 0 ? 0 : errno;
  errno = saved;
  CallOnce(&in_pause);
  return status;
}

namespace {

using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Process;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr int64_t kLong = 20000000000;
// SLICE_NS and UNFENCED_SLICE_NS of the sources.
constexpr int64_t kSliceNs = 5000000;
constexpr int64_t kUnfencedSliceNs = 1000000;

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
    sleeps_are_endless = false;
    refused_ns = 0;
  }
  ~PortFenceTest() override {
    refuses_to_register = false;
    refuses_barriers = false;
    sleeps_are_endless = false;
    in_barrier = nullptr;
    in_pause = nullptr;
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
  // Those that notify would notify.
  bool HasBit(shmipc_role_t role) const {
    return (__atomic_load_n(&Side(role)->event.word, __ATOMIC_SEQ_CST) & 1u) !=
           0;
  }
  void Forge(shmipc_role_t role, uint32_t word) const {
    __atomic_store_n(&Side(role)->fence, word, __ATOMIC_RELAXED);
  }
  bool IsSpsc() const {
    return GetParam() == SHMIPC_SPSC;
  }
  // Until it has slept more than once: on a busy machine one sleep may take as
  // long as the whole wait.
  static void ReceiveInVain(Port *receiver) {
    sleeps = 0;
    do {
      EXPECT_EQ(receiver->Receive(30000000), "ETIMEDOUT");
    } while (sleeps <= 1);
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
  ReceiveInVain(&receiver);
  EXPECT_GT(longest_sleep_ns, kUnfencedSliceNs);
  EXPECT_LE(longest_sleep_ns, kSliceNs);
  // One call; from then on the mode says it.
  EXPECT_EQ(barriers, 1);
  EXPECT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_FENCED));
}

TEST_P(PortFenceTest, OneThatMayNotCallSleepsForAMillisecond) {
  refuses_barriers = true;
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  ReceiveInVain(&receiver);
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
  ReceiveInVain(&receiver);
  EXPECT_GT(longest_sleep_ns, 1000000);
}

TEST_P(PortFenceTest, ArmHasTheBarrierToo) {
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  ASSERT_GE(shmipc_port_fd(receiver.get()), 0);
  ASSERT_EQ(shmipc_port_arm(receiver.get()), 0);
  EXPECT_EQ(barriers, 1);
  EXPECT_EQ(Mode(SHMIPC_RECEIVER), static_cast<uint32_t>(SHMIPC_FENCED));
}

// The bit may be missed; then the timer is all there is.
TEST_P(PortFenceTest, ArmOfOneThatMayNotCallIsForAMillisecond) {
  refuses_barriers = true;
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  struct pollfd poll_fd = {shmipc_port_fd(receiver.get()), POLLIN, 0};
  ASSERT_GE(poll_fd.fd, 0);
  ASSERT_EQ(shmipc_port_arm(receiver.get()), 0);
  EXPECT_EQ(barriers, 1);
  struct itimerspec left;
  ASSERT_EQ(timerfd_gettime(receiver.get()->timer_fd, &left), 0);
  EXPECT_EQ(left.it_value.tv_sec, 0);
  EXPECT_LE(left.it_value.tv_nsec, kUnfencedSliceNs);
  EXPECT_EQ(poll(&poll_fd, 1, -1), 1);
}

// -- The bit is there before the barrier, and who waits looks after it.

TEST_P(PortFenceTest, AReceiverSeesWhatWasSentDuringTheBarrier) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  in_barrier = [&] {
    EXPECT_TRUE(HasBit(SHMIPC_RECEIVER)) << "it could not be notified";
    EXPECT_EQ(sender.Send("x"), 0);
  };
  EXPECT_EQ(receiver.Receive(kLong), "x");
  EXPECT_EQ(barriers, 1);
  EXPECT_EQ(sleeps, 0);
}

TEST_P(PortFenceTest, ASenderSeesTheRoomThatWasMadeDuringTheBarrier) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  while (sender.Send("x") == 0) {
  }
  in_barrier = [&] {
    EXPECT_TRUE(HasBit(SHMIPC_SENDER)) << "it could not be notified";
    EXPECT_EQ(receiver.Receive(), "x");
  };
  EXPECT_EQ(sender.Send("last", kLong), 0);
  EXPECT_EQ(barriers, 1);
  EXPECT_EQ(sleeps, 0);
}

TEST_P(PortFenceTest, ArmSeesWhatWasSentDuringTheBarrier) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  ASSERT_GE(shmipc_port_fd(receiver.get()), 0);
  in_barrier = [&] {
    EXPECT_TRUE(HasBit(SHMIPC_RECEIVER)) << "it could not be notified";
    EXPECT_NE(receiver.get()->entry->is_armed, 0u);
    EXPECT_EQ(sender.Send("x"), 0);
  };
  EXPECT_EQ(shmipc_port_arm(receiver.get()), -EAGAIN);
  EXPECT_EQ(barriers, 1);
  EXPECT_EQ(receiver.Receive(), "x");
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
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  for (uint32_t forged :
       {0u, 1u, 2u, 3u, 0xfffffffcu, 0xfffffffdu, 0xfffffffeu, 0xffffffffu}) {
    SCOPED_TRACE(forged);
    Forge(SHMIPC_RECEIVER, forged);
    barriers = 0;
    longest_sleep_ns = 0;
    EXPECT_EQ(receiver.Receive(10000000), "ETIMEDOUT");
    EXPECT_LE(longest_sleep_ns, kSliceNs);
    // Only what says FENCED is believed.
    EXPECT_EQ(barriers,
              SHMIPC_FENCE_MODE(forged) == uint32_t{SHMIPC_FENCED} ? 0 : 1);
    EXPECT_EQ(Side(SHMIPC_RECEIVER)->fence,
              SHMIPC_FENCE_WORD(SHMIPC_FENCE_COUNT(forged), SHMIPC_FENCED));
    // Both ends find it forged, and there are no slices to help.
    Forge(SHMIPC_RECEIVER, forged);
    sleeps = 0;
    sleeps_are_endless = true;
    std::thread other([&] { EXPECT_EQ(receiver.Receive(kLong), "x"); });
    while (sleeps == 0) {
      std::this_thread::yield();
    }
    Forge(SHMIPC_RECEIVER, forged);
    EXPECT_EQ(sender.Send("x"), 0);
    other.join();
    sleeps_are_endless = false;
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

// A commit during the barrier, or the pause, is what leaves a store buffer
// then. (MPMC: receivers wait for what is being written, without either.)
class SpscFenceTest : public PortFenceTest {
 protected:
  // Leaves the channel shut, and a message of the sender's reserved.
  void ReserveAndShut() {
    void *place;
    ASSERT_EQ(shmipc_port_reserve(sender_.get(), 1, &place, 0), 0);
    *static_cast<char *>(place) = 'x';
    ASSERT_EQ(shmipc_port_shut(sender_.get()), 0);
  }
  // The sender is told that it was too late, perhaps.
  void Commit() {
    EXPECT_EQ(barriers, 1);
    EXPECT_EQ(shmipc_port_commit(sender_.get(), 1), -EPIPE);
  }

  Port sender_{own_.region(), Channel(), SHMIPC_SENDER};
  Port receiver_{own_.region(), Channel(), SHMIPC_RECEIVER};
};

INSTANTIATE_TEST_SUITE_P(All, SpscFenceTest, testing::Values(SHMIPC_SPSC),
                         channel_testing::ParamName);

TEST_P(SpscFenceTest, AReceiverOfAShutOneLooksAfterTheBarrier) {
  ReserveAndShut();
  in_barrier = [&] {
    Commit();
  };
  EXPECT_EQ(receiver_.Receive(), "x");
  EXPECT_EQ(receiver_.Receive(), "EPIPE");
  EXPECT_EQ(barriers, 1);
}

TEST_P(SpscFenceTest, AReceiverOfAShutOneThatMayNotCallLooksAfterAPause) {
  refuses_barriers = true;
  ReserveAndShut();
  in_pause = [&] {
    EXPECT_GE(shmipc_testing::NowNs() - refused_ns, kUnfencedSliceNs);
    Commit();
  };
  EXPECT_EQ(receiver_.Receive(), "x");
  EXPECT_EQ(receiver_.Receive(), "EPIPE");
  EXPECT_EQ(barriers, 1);
}

}  // namespace
