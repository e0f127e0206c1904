// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Every interleaving of the waits of port_wait.c for one or two that wait and
// one or two that send (futex_model.h), without the slices of the sources:
// nobody may be left asleep. With a step left out each has to fail.

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/futex_model.h"

namespace {

// -- Waiting: port_wait.c, and event.c's notification of one. Bit 0 of the word
// is W, then a count. `data` are messages.

class WaitProtocol : public futex_model::Protocol {
 public:
  enum Pc : uint8_t {
    kTry,
    kMark,
    kTryAgain,
    kSleep,
    kPut,
    kLookForBit,
    kClear,
    kWakeFirst,
    kWakeSecond,
    kPutBack,
    kWakeAll,
    kWakeOneMore,
    kPassOn,
    kEnd,
  };
  enum Left {
    kNone,
    kSecondTry,
    kBitIsSet,
    kPutFirst,
    kWakes,
    kCompares,
    kOneMore,
  };

  WaitProtocol(size_t num_waiters, size_t num_senders, Left left)
      : Protocol(num_waiters + num_senders),
        num_waiters_(num_waiters),
        left_(left) {
  }

  bool IsDone(const futex_model::State &state, size_t who) const override {
    return state.thread[who].pc == kEnd;
  }
  std::string WrongWith(const futex_model::State &) const override {
    return "";
  }
  size_t NumAlike() const override {
    return num_waiters_;
  }
  void Step(const futex_model::State &state, size_t who,
            std::vector<futex_model::State> *out) override {
    if (state.thread[who].is_asleep != 0) {
      return;
    }
    futex_model::State next = state;
    futex_model::Thread &mine = next.thread[who];
    switch (mine.pc) {
      case kTry:
      case kTryAgain:
        if (state.data != 0) {
          next.data--;
          // Whoever went to sleep looks for others.
          mine.pc = mine.seen != 0 ? kPassOn : kEnd;
        } else {
          mine.pc = mine.pc == kTry ? kMark : kSleep;
        }
        break;
      case kMark:
        next.word |= left_ == kBitIsSet ? 0 : 1;
        mine.seen = next.word;
        mine.pc = left_ == kSecondTry ? kSleep : kTryAgain;
        break;
      case kSleep:
        mine.is_asleep = state.word == mine.seen || left_ == kCompares;
        mine.pc = kTry;
        break;
      case kPut:
        next.data++;
        mine.pc = left_ == kPutFirst ? AfterLook(&mine) : kLookForBit;
        break;
      case kLookForBit:
        mine.waiters = state.word & 1;
        mine.pc = left_ == kPutFirst ? kPut : AfterLook(&mine);
        break;
      case kPassOn:
        mine.pc = state.data != 0 ? kClear : kEnd;
        break;
      case kClear:
        next.word = static_cast<uint8_t>((state.word + 2) & 0xfe);
        mine.seen = next.word;
        mine.pc = (state.word & 1) == 0 || left_ == kWakes ? AfterAll(&mine)
                                                           : kWakeFirst;
        break;
      case kWakeFirst:
        mine.pc = AnyAsleep(state) ? kWakeSecond : AfterAll(&mine);
        Wake(next, false, out);
        return;
      case kWakeSecond:
        mine.pc = AnyAsleep(state) ? kPutBack : AfterAll(&mine);
        Wake(next, false, out);
        return;
      case kPutBack:
        next.word |= 1;
        mine.pc = (state.word & 0xfe) != mine.seen ? kWakeAll
                  : left_ == kOneMore              ? AfterAll(&mine)
                                                   : kWakeOneMore;
        break;
      case kWakeAll:
      case kWakeOneMore: {
        bool wakes_all = mine.pc == kWakeAll;
        mine.pc = AfterAll(&mine);
        Wake(next, wakes_all, out);
        return;
      }
      default:
        return;
    }
    out->push_back(next);
  }

  // The first sender has that many messages, each other has one.
  std::string ExploreFrom(uint8_t word, uint8_t num_messages = 1) {
    futex_model::State state = {};
    state.word = word;
    for (size_t i = 0; i < num_threads_; i++) {
      state.thread[i].times_left = i == num_waiters_ ? num_messages : 1;
      state.thread[i].pc = i < num_waiters_     ? kTry
                           : left_ == kPutFirst ? kLookForBit
                                                : kPut;
    }
    return Explore(state);
  }

 private:
  static Pc AfterLook(futex_model::Thread *mine) {
    return mine->waiters != 0 ? kClear : AfterAll(mine);
  }
  static Pc AfterAll(futex_model::Thread *mine) {
    return --mine->times_left != 0 ? kPut : kEnd;
  }
  bool AnyAsleep(const futex_model::State &state) const {
    for (size_t i = 0; i < num_waiters_; i++) {
      if (state.thread[i].is_asleep != 0) {
        return true;
      }
    }
    return false;
  }

  size_t num_waiters_;
  Left left_;
};

TEST(WaitModelTest, NoWakeUpIsLost) {
  for (uint8_t word : {0, 1, 254, 255}) {
    for (size_t count : {1, 2}) {
      WaitProtocol protocol(count, count, WaitProtocol::kNone);
      EXPECT_EQ(protocol.ExploreFrom(word), "");
      printf("wait, %zu: %zu states\n", count, protocol.num_states());
    }
  }
}

// Two that were woken find nothing more while the second of two messages comes,
// whose sender sees no bit.
TEST(WaitModelTest, ThreeThatSleepAreAllWoken) {
  WaitProtocol protocol(3, 2, WaitProtocol::kNone);
  EXPECT_EQ(protocol.ExploreFrom(254, 2), "");
  printf("wait, three: %zu states\n", protocol.num_states());
  WaitProtocol without(3, 2, WaitProtocol::kOneMore);
  EXPECT_NE(without.ExploreFrom(254, 2), "");
}

TEST(WaitModelTest, EachStepIsNeeded) {
  for (auto left : {WaitProtocol::kSecondTry, WaitProtocol::kBitIsSet,
                    WaitProtocol::kPutFirst, WaitProtocol::kWakes,
                    WaitProtocol::kCompares}) {
    WaitProtocol protocol(2, 2, left);
    EXPECT_NE(protocol.ExploreFrom(254), "") << left;
  }
}

}  // namespace
