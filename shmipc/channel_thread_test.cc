// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Channels between threads, for TSan, with random delays before each futex call
// and without the slices: a wait has no end but a wake-up, so one that is lost
// is a hang, which the watchdog finds. Each message comes once, in its sender's
// order. And waits that never get through a slice.
//
// 20,000 messages for each sender, or SHMIPC_MESSAGES of them. SHMIPC_TEST_SEED
// for other random numbers.

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

std::atomic<bool> delays;
// Each wait ends at once, as if there were a signal.
std::atomic<bool> interrupts;
std::atomic<uint64_t> waits;
std::atomic<uint64_t> wakes;

// Before there are threads: to ask for it in a system call of a lock that
// guards it would be without end.
const uint64_t seed = shmipc_testing::Seed();

// Between nothing and 100 us.
void Delay() {
  static thread_local std::minstd_rand random(
      static_cast<unsigned int>(seed) ^
      static_cast<unsigned int>(
          std::hash<std::thread::id>()(std::this_thread::get_id())));
  int64_t end =
      shmipc_testing::NowNs() +
      (random() % 4 == 0 ? static_cast<int64_t>(random() % 100000) : 0);
  while (shmipc_testing::NowNs() < end) {
  }
}

}  // namespace

// The library's system calls come here, not to libc.
extern "C" long syscall(long number, ...) {
  long a[6];
  va_list list;
  va_start(list, number);
  shmipc_testing::ReadArguments(list, &a);
  va_end(list);
  if (number == SYS_futex && a[1] == FUTEX_WAIT && interrupts) {
    errno = EINTR;
    return -1;
  }
  if (number == SYS_futex && delays) {
    Delay();
    if (a[1] == FUTEX_WAIT) {
      waits++;
      a[3] = 0;
    } else {
      wakes++;
    }
  }
  return shmipc_testing::RawCall(number, a);
}

namespace {

using channel_testing::Fill;
using channel_testing::KindName;
using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Count;
using shmipc_testing::NowNs;
using shmipc_testing::Process;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

class ChannelThreadTest : public testing::TestWithParam<shmipc_channel_kind_t> {
};

INSTANTIATE_TEST_SUITE_P(All, ChannelThreadTest, testing::ValuesIn(kKinds),
                         channel_testing::ParamName);

TEST_P(ChannelThreadTest, NoWakeUpIsLost) {
  Watchdog watchdog(240);
  const uint64_t count = Count("SHMIPC_MESSAGES", 20000);
  const size_t num = GetParam() == SHMIPC_SPSC ? 1 : 3;
  TestRegion own(SHMIPC_MEMFD, 4096, [](auto *o) { o->heap_bytes = 1 << 20; });
  shmipc_channel_options_t options = {};
  options.kind = GetParam();
  options.message_bytes = 40;
  options.capacity_messages = 2;
  shmipc_ref_t ref;
  ASSERT_EQ(shmipc_channel_create(own.region(), "channel", &options, &ref), 0);
  void *channel = shmipc_ref_get(own.region(), ref, 1);
  std::vector<std::vector<std::atomic<uint8_t>>> times(num);
  for (auto &one : times) {
    one = std::vector<std::atomic<uint8_t>>(count);
  }
  std::atomic<uint64_t> errors{0};
  std::atomic<uint64_t> disorder{0};
  delays = true;
  waits = 0;
  wakes = 0;
  std::vector<std::thread> senders;
  std::vector<std::thread> receivers;
  for (size_t who = 0; who < num; who++) {
    senders.emplace_back([&, who] {
      Port port(own.region(), channel, SHMIPC_SENDER);
      for (uint64_t i = 0; i < count; i++) {
        // Also such that the others are asleep.
        if (i % 16 == 0) {
          int64_t end = NowNs() + 60000;
          while (NowNs() < end) {
          }
        }
        uint64_t message[2] = {who, i};
        std::string text(reinterpret_cast<char *>(message), sizeof(message));
        errors += port.Send(text + Fill(i % 25, i), SHMIPC_FOREVER) != 0;
      }
    });
    receivers.emplace_back([&] {
      Port port(own.region(), channel, SHMIPC_RECEIVER);
      std::vector<uint64_t> next(num);
      for (;;) {
        char buffer[40];
        size_t len;
        int status = shmipc_port_receive(port.get(), buffer, sizeof(buffer),
                                         &len, SHMIPC_FOREVER);
        if (status == -EPIPE) {
          break;
        }
        uint64_t message[2];
        memcpy(message, buffer, sizeof(message));
        if (status != 0 || message[0] >= num || message[1] >= count ||
            memcmp(buffer + 16, Fill(message[1] % 25, message[1]).data(),
                   len - 16) != 0) {
          errors++;
          break;
        }
        disorder += message[1] < next[message[0]];
        next[message[0]] = message[1] + 1;
        times[message[0]][message[1]]++;
      }
    });
  }
  for (std::thread &sender : senders) {
    sender.join();
  }
  {
    shmipc_port_t *port;
    ASSERT_EQ(shmipc_port_open(own.region(), channel, SHMIPC_SENDER, &port), 0);
    EXPECT_EQ(shmipc_port_shut(port), 0);
    shmipc_port_close(port);
  }
  for (std::thread &receiver : receivers) {
    receiver.join();
  }
  delays = false;
  uint64_t wrong = 0;
  for (const auto &one : times) {
    for (const auto &came : one) {
      wrong += came != 1;
    }
  }
  printf(
      "%s: %zu senders and receivers, %zu messages each, %zu waits, %zu "
      "wake-ups, 0 lost\n",
      KindName(GetParam()), num, static_cast<size_t>(count),
      static_cast<size_t>(waits), static_cast<size_t>(wakes));
  EXPECT_EQ(errors, 0u);
  EXPECT_EQ(disorder, 0u);
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(waits, 10u) << "nobody has slept";
}

// Messages behind one that is being written have used up their wake-ups when
// that is committed: all that sleep get one.
TEST_P(ChannelThreadTest, ManyThatSleepGetWhatWasHeldUp) {
  if (GetParam() == SHMIPC_SPSC) {
    GTEST_SKIP() << "there is one receiver";
  }
  Watchdog watchdog(100);
  constexpr size_t kNum = 6;
  TestRegion own(SHMIPC_MEMFD, 4096, [](auto *o) { o->heap_bytes = 1 << 20; });
  shmipc_channel_options_t options = {};
  options.kind = GetParam();
  options.message_bytes = 40;
  options.capacity_messages = 16;
  shmipc_ref_t ref;
  ASSERT_EQ(shmipc_channel_create(own.region(), "channel", &options, &ref), 0);
  void *channel = shmipc_ref_get(own.region(), ref, 1);
  Port slow(own.region(), channel, SHMIPC_SENDER);
  Port fast(own.region(), channel, SHMIPC_SENDER);
  for (int round = 0; round < 20; round++) {
    void *place;
    ASSERT_EQ(shmipc_port_reserve(slow.get(), 1, &place, 0), 0);
    memcpy(place, "x", 1);
    delays = true;
    uint64_t waits_before = waits;
    std::atomic<int> errors{0};
    std::vector<std::thread> receivers;
    for (size_t i = 0; i < kNum; i++) {
      receivers.emplace_back([&] {
        Port port(own.region(), channel, SHMIPC_RECEIVER);
        char buffer[40];
        size_t len = 0;
        errors += shmipc_port_receive(port.get(), buffer, sizeof(buffer), &len,
                                      SHMIPC_FOREVER) != 0 ||
                  len != 1;
      });
    }
    while (waits < waits_before + kNum) {
      std::this_thread::yield();
    }
    for (size_t i = 1; i < kNum; i++) {
      ASSERT_EQ(fast.Send("x"), 0);
    }
    // Those that were woken sleep again, most of them.
    int64_t end = NowNs() + 3000000;
    while (NowNs() < end) {
      std::this_thread::yield();
    }
    ASSERT_EQ(shmipc_port_commit(slow.get(), 1), 0);
    for (std::thread &receiver : receivers) {
      receiver.join();
    }
    delays = false;
    EXPECT_EQ(errors, 0);
  }
}

// Each of these sleeps without an end, and one change of somebody else is what
// it waits for.
class MpmcWakeTest : public testing::Test {
 protected:
  MpmcWakeTest() {
    shmipc_channel_options_t options = {};
    options.kind = SHMIPC_MPMC;
    options.message_bytes = 40;
    options.capacity_messages = 4;
    if (shmipc_channel_create(own_.region(), "channel", &options, &ref_) != 0) {
      abort();
    }
  }
  ~MpmcWakeTest() override {
    delays = false;
  }
  void *Channel() {
    return shmipc_ref_get(own_.region(), ref_, 1);
  }
  // Starts a thread; returns when it sleeps.
  std::thread Sleeper(const std::function<void()> &work) {
    delays = true;
    uint64_t before = waits;
    std::thread thread(work);
    WaitForSleep(before);
    return thread;
  }
  static void WaitForSleep(uint64_t before) {
    while (waits == before) {
      std::this_thread::yield();
    }
  }

  Watchdog watchdog_{60};
  TestRegion own_{SHMIPC_MEMFD, 4096, [](auto *o) {
                    o->heap_bytes = 1 << 20;
                  }};
  shmipc_ref_t ref_ = {};
};

TEST_F(MpmcWakeTest, AnAbortShowsWhatIsBehindIt) {
  Port slow(own_.region(), Channel(), SHMIPC_SENDER);
  Port fast(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  void *place;
  ASSERT_EQ(shmipc_port_reserve(slow.get(), 1, &place, 0), 0);
  std::thread sleeper =
      Sleeper([&] { EXPECT_EQ(receiver.Receive(SHMIPC_FOREVER), "behind"); });
  uint64_t before = waits;
  ASSERT_EQ(fast.Send("behind"), 0);
  WaitForSleep(before);
  ASSERT_EQ(shmipc_port_abort(slow.get()), 0);
  sleeper.join();
}

TEST_F(MpmcWakeTest, AReceiverThatGivesAMessageBackShowsIt) {
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  Port other(own_.region(), Channel(), SHMIPC_RECEIVER);
  ASSERT_EQ(sender.Send("one"), 0);
  const void *data;
  size_t len;
  ASSERT_EQ(shmipc_port_peek(other.get(), &data, &len, 0), 0);
  std::thread sleeper =
      Sleeper([&] { EXPECT_EQ(receiver.Receive(SHMIPC_FOREVER), "one"); });
  other.Close();
  sleeper.join();
}

TEST_F(MpmcWakeTest, AReceiverThatPassesAnAbortedOneMakesRoom) {
  Port slow(own_.region(), Channel(), SHMIPC_SENDER);
  Port sender(own_.region(), Channel(), SHMIPC_SENDER);
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  void *place;
  ASSERT_EQ(shmipc_port_reserve(slow.get(), 1, &place, 0), 0);
  while (sender.Send("x") == 0) {
  }
  ASSERT_EQ(shmipc_port_abort(slow.get()), 0);
  std::thread sleeper =
      Sleeper([&] { EXPECT_EQ(sender.Send("last", SHMIPC_FOREVER), 0); });
  // Not released, so that the only room is that of the aborted one.
  const void *data;
  size_t len;
  ASSERT_EQ(shmipc_port_peek(receiver.get(), &data, &len, 0), 0);
  sleeper.join();
}

TEST_F(MpmcWakeTest, WhoRecoversTellsThoseThatSleep) {
  Port receiver(own_.region(), Channel(), SHMIPC_RECEIVER);
  std::thread sleeper = Sleeper(
      [&] { EXPECT_EQ(receiver.Receive(SHMIPC_FOREVER), "EOWNERDEAD"); });
  Process dead([&]() -> int {
    shmipc_region_t *region = own_.AttachInChild();
    shmipc_port_t *port;
    _exit(shmipc_port_open(region, shmipc_ref_get(region, ref_, 1),
                           SHMIPC_SENDER, &port) == 0
              ? 0
              : 1);
  });
  ASSERT_EQ(dead.Wait(), 0);
  // Opening recovers.
  Port other(own_.region(), Channel(), SHMIPC_RECEIVER);
  sleeper.join();
}

// Whoever is woken again and again still finds out who is dead: a receiver what
// a dead sender was writing, in front of a message; a sender what a dead
// receiver has.
TEST_P(ChannelThreadTest, OneThatIsInterruptedAsksForTheDeadToo) {
  Watchdog watchdog(120);
  constexpr int64_t kWait = 20000000000;
  for (bool sends : {false, true}) {
    TestRegion own(SHMIPC_MEMFD, 4096,
                   [](auto *o) { o->heap_bytes = 1 << 20; });
    shmipc_channel_options_t options = {};
    options.kind = GetParam();
    options.message_bytes = 40;
    options.capacity_messages = 2;
    shmipc_ref_t ref;
    ASSERT_EQ(shmipc_channel_create(own.region(), "channel", &options, &ref),
              0);
    void *channel = shmipc_ref_get(own.region(), ref, 1);
    Port ours(own.region(), channel, sends ? SHMIPC_SENDER : SHMIPC_RECEIVER);
    if (sends) {
      ASSERT_EQ(ours.Send("x"), 0);
    }
    Process dead([&]() -> int {
      shmipc_region_t *region = own.AttachInChild();
      Port port(region, shmipc_ref_get(region, ref, 1),
                sends ? SHMIPC_RECEIVER : SHMIPC_SENDER);
      void *place;
      const void *data;
      size_t len;
      int status = sends ? shmipc_port_peek(port.get(), &data, &len, 0)
                         : shmipc_port_reserve(port.get(), 40, &place, 0);
      _exit(status == 0 ? 0 : 1);
    });
    ASSERT_EQ(dead.Wait(), 0);
    interrupts = true;
    if (sends) {
      int status;
      while ((status = ours.Send("x", kWait)) == 0) {
      }
      EXPECT_EQ(status, -EOWNERDEAD);
    } else {
      EXPECT_EQ(ours.Receive(kWait), "EOWNERDEAD");
    }
    interrupts = false;
  }
}

}  // namespace
