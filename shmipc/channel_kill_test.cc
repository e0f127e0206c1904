// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at random instants of processes that send and receive in a tight
// loop, copying and in place, each one that is killed replaced; and SIGSTOP.
// What was committed has to come, whole, in the order of its sender, and no
// more often than the contract has it.
//
// Each sender has a journal outside of the region: the number that it is about
// to send, and, after the call, that it has. So of one that was killed all up
// to the second number must come, the next one may, and nothing after that.
// Each receiver marks a message in a table before it releases it. One that was
// killed with a message makes it come again: once more at most for each death.
//
// 120 kills for each kind of channel, fewer for all kinds of region but one, or
// SHMIPC_KILLS of them.
// SHMIPC_TEST_SEED for other random numbers.

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/channel_testing.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::KindName;
using channel_testing::kKinds;
using shmipc_testing::Backends;
using shmipc_testing::NameOf;
using shmipc_testing::NowNs;
using shmipc_testing::NumKills;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;
using shmipc_testing::WorstGapNs;

constexpr size_t kMessageBytes = 400;
constexpr int64_t kWait = 2000000000;
constexpr int64_t kPauseNs = 3000000;  // Between two kills, at most.
constexpr uint64_t kSendersMax = 1 << 14;
constexpr uint64_t kPerSender = 1 << 13;

// One sender's life.
struct Journal {
  std::atomic<uint64_t> sent;  // Numbers below it were sent.
  std::atomic<uint32_t> is_over;
  std::atomic<uint8_t> times[kPerSender];  // How often each came.
};

struct Tally {
  std::atomic<uint64_t> received;
  std::atomic<uint64_t> broken;    // Half messages.
  std::atomic<uint64_t> unsent;    // Came, and nobody has sent them.
  std::atomic<uint64_t> disorder;  // Of one sender, at one receiver.
  std::atomic<uint64_t> told;      // -EOWNERDEAD.
  std::atomic<uint64_t> errors;
  std::atomic<int> last_error;
  std::atomic<int64_t> worst_stall_ns;
  std::atomic<uint32_t> is_over;
  std::atomic<uint64_t> rounds[8];
  Journal journals[kSendersMax];
};

struct Head {
  uint64_t sender;
  uint64_t number;
  uint64_t len;
  uint64_t check;  // Of these.
};

uint64_t CheckOf(const Head &head) {
  return (head.sender * 31 + head.number) * 0x9e3779b97f4a7c15u + head.len;
}

void Stall(Tally *tally, int64_t start) {
  int64_t ns = NowNs() - start;
  int64_t seen = tally->worst_stall_ns;
  while (seen < ns && !tally->worst_stall_ns.compare_exchange_weak(seen, ns)) {
  }
}

void Error(Tally *tally, int status) {
  tally->last_error = status;
  tally->errors++;
}

// Opens the end; in SPSC the dead one's, whose death may not be seen yet.
shmipc_port_t *Open(shmipc_region_t *region, uint64_t offset,
                    shmipc_role_t role, Tally *tally) {
  shmipc_port_t *port = nullptr;
  int status = shmipc_port_open(
      region, shmipc_ref_get(region, shmipc_ref_t{offset}, 1), role, &port);
  if (status != 0) {
    Error(tally, status);
  }
  return port;
}

void FillMessage(unsigned char *place, const Head &head) {
  memcpy(place, &head, sizeof(head));
  for (size_t i = sizeof(head); i < head.len; i++) {
    place[i] = static_cast<unsigned char>(head.number + i);
  }
}

int SendAll(shmipc_region_t *region, uint64_t offset, Tally *tally, int place,
            uint64_t id, uint64_t seed) {
  std::mt19937_64 random(seed);
  if (id >= kSendersMax) {
    Error(tally, -ENOSPC);
    return 1;
  }
  Journal *journal = &tally->journals[id];
  shmipc_port_t *port = Open(region, offset, SHMIPC_SENDER, tally);
  if (port == nullptr) {
    return 1;
  }
  for (uint64_t number = 0; number < kPerSender && tally->is_over == 0;
       tally->rounds[place]++) {
    Head head = {id, number, sizeof(Head) + random() % (400 - sizeof(Head)), 0};
    head.check = CheckOf(head);
    int64_t start = NowNs();
    int status;
    bool aborts = false;
    if (random() % 2 == 0) {
      unsigned char message[kMessageBytes];
      FillMessage(message, head);
      start = NowNs();
      status = shmipc_port_send(port, message, head.len, kWait);
    } else {
      void *data;
      status = shmipc_port_reserve(port, kMessageBytes, &data, kWait);
      if (status == 0) {
        memset(data, 0xdd, 100);
        aborts = random() % 8 == 0;
        if (aborts) {
          status = shmipc_port_abort(port);
        } else {
          FillMessage(static_cast<unsigned char *>(data), head);
          status = shmipc_port_commit(port, head.len);
        }
      }
    }
    Stall(tally, start);
    if (status == 0 && !aborts) {
      journal->sent = ++number;
    } else if (status == -EOWNERDEAD) {
      tally->told++;
    } else if (status != 0) {
      Error(tally, status);
    }
  }
  shmipc_port_close(port);
  journal->is_over = 1;
  return 0;
}

// Looks at a message. Its place in the tables.
void Take(Tally *tally, std::vector<uint64_t> *next, const void *data,
          size_t len, bool may_be_late) {
  Head head;
  if (len < sizeof(head)) {
    tally->broken++;
    return;
  }
  memcpy(&head, data, sizeof(head));
  const auto *bytes = static_cast<const unsigned char *>(data);
  bool is_whole = head.check == CheckOf(head) && head.len == len &&
                  head.sender < kSendersMax && head.number < kPerSender;
  for (size_t i = sizeof(head); is_whole && i < len; i++) {
    is_whole = bytes[i] == static_cast<unsigned char>(head.number + i);
  }
  if (!is_whole) {
    tally->broken++;
    return;
  }
  Journal *journal = &tally->journals[head.sender];
  if (head.number > journal->sent) {
    tally->unsent++;
  }
  if (head.number < (*next)[head.sender]) {
    // Late ones are what dead receivers had.
    tally->disorder += !may_be_late;
  } else {
    (*next)[head.sender] = head.number + 1;
  }
  journal->times[head.number]++;
  tally->received++;
}

int ReceiveAll(shmipc_region_t *region, uint64_t offset, Tally *tally,
               int place, uint64_t seed, bool may_be_late) {
  std::mt19937_64 random(seed);
  shmipc_port_t *port = Open(region, offset, SHMIPC_RECEIVER, tally);
  if (port == nullptr) {
    return 1;
  }
  std::vector<uint64_t> next(kSendersMax);
  for (;; tally->rounds[place]++) {
    bool is_over = tally->is_over == 2;
    int64_t start = NowNs();
    const void *data = nullptr;
    size_t len = 0;
    int64_t timeout = is_over ? 20000000 : 50000000;
    unsigned char buffer[kMessageBytes];
    bool copies = random() % 2 == 0;
    int status = copies ? shmipc_port_receive(port, buffer, sizeof(buffer),
                                              &len, timeout)
                        : shmipc_port_peek(port, &data, &len, timeout);
    if (status == 0) {
      Stall(tally, start);
      Take(tally, &next, copies ? buffer : data, len, may_be_late);
      status = copies ? 0 : shmipc_port_release(port);
      if (status != 0) {
        Error(tally, status);
      }
    } else if (status == -EOWNERDEAD) {
      tally->told++;
    } else if (status != -ETIMEDOUT) {
      Error(tally, status);
    } else if (is_over) {
      break;
    }
  }
  shmipc_port_close(port);
  return 0;
}

using Params = std::tuple<shmipc_channel_kind_t, shmipc_backend_t>;

class ChannelKillTest : public testing::TestWithParam<Params> {
 protected:
  ChannelKillTest() {
    shmipc_channel_options_t options = {};
    options.kind = kind_;
    options.message_bytes = kMessageBytes;
    options.capacity_messages = 8;
    shmipc_ref_t ref;
    if (shmipc_channel_create(own_.region(), "channel", &options, &ref) != 0) {
      abort();
    }
    offset_ = ref.offset;
    // Who is received from twice, or has a place of its own.
    num_senders_ = kind_ == SHMIPC_SPSC ? 1 : 2;
    num_receivers_ = num_senders_;
  }

  Process Start(int place) {
    uint64_t seed = seed_++;
    uint64_t id = place < num_senders_ ? num_lives_++ : 0;
    if (place < num_senders_) {
      life_of_[place] = id;
    }
    return Process([this, place, id, seed] {
      shmipc_region_t *region = own_.AttachInChild();
      if (region == nullptr) {
        Error(&*tally_, -ENXIO);
        return 1;
      }
      return place < num_senders_
                 ? SendAll(region, offset_, &*tally_, place, id, seed)
                 : ReceiveAll(region, offset_, &*tally_, place, seed,
                              kind_ == SHMIPC_MPMC && receivers_die_);
    });
  }

  void Replace(std::vector<Process> *all, int place) {
    (*all)[static_cast<size_t>(place)].Kill();
    (*all)[static_cast<size_t>(place)] = Start(place);
  }

  // Not before some messages came for each kill or stop, however busy the
  // machine is: the watchdog ends a hang.
  void Finish(std::vector<Process> *all, uint64_t count) {
    while (tally_->received <= 3 * count) {
      struct timespec pause = {0, kPauseNs};
      nanosleep(&pause, nullptr);
    }
    tally_->is_over = 1;
    for (int i = 0; i < num_senders_; i++) {
      EXPECT_EQ((*all)[static_cast<size_t>(i)].Wait(), 0);
    }
    tally_->is_over = 2;
    for (int i = 0; i < num_receivers_; i++) {
      EXPECT_EQ((*all)[static_cast<size_t>(num_senders_ + i)].Wait(), 0);
    }
  }

  void ExpectAllCame(const char *what, uint64_t count,
                     uint64_t dead_receivers) {
    uint64_t lost = 0;
    uint64_t again = 0;
    uint64_t sent = 0;
    uint64_t extra = 0;
    for (uint64_t id = 0; id < num_lives_; id++) {
      const Journal &journal = tally_->journals[id];
      sent += journal.sent;
      for (uint64_t i = 0; i < kPerSender; i++) {
        uint64_t times = journal.times[i];
        if (i < journal.sent) {
          lost += times == 0;
        } else {
          // The one that it was killed with may have been sent.
          extra += times != 0 && (i > journal.sent || journal.is_over != 0);
        }
        again += times > 1 ? times - 1 : 0;
      }
    }
    // A receiver that is killed between its mark and the release makes one come
    // again. One that is killed between the release in `receive` and its mark
    // dies with the message that it has received.
    printf("%s %s %s: %" PRIu64 " times, %" PRIu64 " sent, %" PRIu64
           " received, %" PRIu64 " again, %" PRIu64
           " of dead receivers' own, "
           "%" PRIu64 " half, %" PRIu64 " out of order, %" PRIu64
           " told, %" PRIu64
           " errors, worst stall %.2f ms, of bare loops in their place %.2f "
           "ms\n",
           KindName(kind_), NameOf(std::get<1>(GetParam())), what, count, sent,
           tally_->received.load(), again, lost, tally_->broken.load(),
           tally_->disorder.load(), tally_->told.load(), tally_->errors.load(),
           static_cast<double>(tally_->worst_stall_ns) * 1e-6,
           static_cast<double>(
               WorstGapNs(num_senders_ + num_receivers_, count, kPauseNs)) *
               1e-6);
    EXPECT_LE(lost, dead_receivers) << "more than died with one";
    EXPECT_LE(again, dead_receivers) << "more than died with one";
    EXPECT_EQ(extra, 0u);
    EXPECT_EQ(tally_->unsent, 0u);
    EXPECT_EQ(tally_->broken, 0u);
    EXPECT_EQ(tally_->disorder, 0u);
    EXPECT_EQ(tally_->errors, 0u) << shmipc_strerror(tally_->last_error);
    EXPECT_GE(shmipc_region_recover(own_.region()), 0);
    EXPECT_EQ(Problems(own_.region()), "");
    shmipc_channel_info_t info;
    ASSERT_EQ(
        shmipc_channel_info_get(
            own_.region(),
            shmipc_ref_get(own_.region(), shmipc_ref_t{offset_}, 1), &info),
        0);
    EXPECT_EQ(info.num_senders + info.num_receivers, 0u);
  }

  void KillSome(const char *what, int first, int count) {
    std::mt19937_64 random(Seed());
    std::vector<Process> all;
    receivers_die_ = first + count > num_senders_;
    for (int i = 0; i < num_senders_ + num_receivers_; i++) {
      all.push_back(Start(i));
    }
    uint64_t dead_receivers = 0;
    for (uint64_t i = 0; i < num_kills_; i++) {
      struct timespec pause = {
          0, static_cast<long>(random() % uint64_t{kPauseNs})};
      nanosleep(&pause, nullptr);
      int victim =
          first + static_cast<int>(random() % static_cast<unsigned int>(count));
      dead_receivers += victim >= num_senders_;
      Replace(&all, victim);
      // One that has sent all its numbers.
      for (int j = 0; j < num_senders_; j++) {
        if (tally_->journals[life_of_[j]].is_over != 0) {
          Replace(&all, j);
        }
      }
    }
    Finish(&all, num_kills_);
    ExpectAllCame(what, num_kills_, dead_receivers);
  }

  shmipc_channel_kind_t kind_ = std::get<0>(GetParam());
  uint64_t num_kills_ = NumKills(std::get<1>(GetParam()), 120);
  Watchdog watchdog_{static_cast<unsigned int>(60 + num_kills_ / 20)};
  Shared<Tally> tally_;
  uint64_t seed_ = Seed();
  TestRegion own_{std::get<1>(GetParam()), 4096, [](auto *o) {
                    o->heap_bytes = 1 << 20;
                  }};
  uint64_t offset_;
  int num_senders_;
  int num_receivers_;
  bool receivers_die_ = false;
  uint64_t num_lives_ = 0;    // Of senders.
  uint64_t life_of_[2] = {};  // The one that now has a sender's place.
};

INSTANTIATE_TEST_SUITE_P(All, ChannelKillTest,
                         testing::Combine(testing::ValuesIn(kKinds),
                                          testing::ValuesIn(Backends())),
                         [](const testing::TestParamInfo<Params> &i) {
                           return std::string(KindName(std::get<0>(i.param))) +
                                  "_" + NameOf(std::get<1>(i.param));
                         });

TEST_P(ChannelKillTest, SendersAreKilled) {
  KillSome("senders killed", 0, num_senders_);
}

TEST_P(ChannelKillTest, ReceiversAreKilled) {
  KillSome("receivers killed", num_senders_, num_receivers_);
}

TEST_P(ChannelKillTest, AnybodyIsKilled) {
  KillSome("anybody killed", 0, num_senders_ + num_receivers_);
}

// Others time out while the stopped one is in the way, and nobody takes what it
// has: all comes once, in order.
TEST_P(ChannelKillTest, NobodyStealsFromTheStopped) {
  std::mt19937_64 random(Seed());
  uint64_t count = num_kills_ / 5;
  std::vector<Process> all;
  for (int i = 0; i < num_senders_ + num_receivers_; i++) {
    all.push_back(Start(i));
  }
  for (uint64_t i = 0; i < count; i++) {
    struct timespec pause = {0, static_cast<long>(random() % 2000000)};
    nanosleep(&pause, nullptr);
    size_t victim = random() % all.size();
    all[victim].Signal(SIGSTOP);
    // Longer than a few slices, now and then.
    pause.tv_nsec = random() % 8 == 0 ? 30000000 : 500000;
    nanosleep(&pause, nullptr);
    all[victim].Signal(SIGCONT);
  }
  Finish(&all, count);
  ExpectAllCame("stopped", count, 0);
}

}  // namespace
