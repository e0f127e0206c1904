// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Every interleaving of port_fence.c, with the waits of port_wait.c and event.c
// around it, on a machine with store buffers (x86's order): what a sender has
// stored is seen by itself alone until it leaves its buffer, at any later step,
// at the latest before a locked instruction or a barrier of its own, or when
// one that waits has a barrier done in all that have registered. No slices:
// nobody may be left asleep. With a step left out, or a sender that has wrongly
// been told that it is registered, that has to happen.

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/futex_model.h"

namespace {

using futex_model::State;
using futex_model::Thread;

constexpr uint8_t kWaiters = 1;  // Bit 0 of the word; then a count.
// Of the side's mode; the count is above.
constexpr uint8_t kPlain = 0;
constexpr uint8_t kAsked = 1;
constexpr uint8_t kFenced = 2;
constexpr uint8_t kModes = 3;
constexpr uint8_t kOneCount = 4;
// QUIET_MAX of the sources.
constexpr uint8_t kQuietMax = 1;

enum Pc : uint8_t {
  // Those that wait.
  kTry,
  kMark,
  kLookAtMode,
  kAsk,
  kBarrierInAll,
  kSayFenced,
  kTryAgain,
  kSleep,
  // Those that send.
  kPut,
  kLoadMode,
  kOwnBarrier,
  kLoadBitFenced,
  kLoadBit,
  kPlainLoad,
  kPlainChange,
  kClear,
  kWakeFirst,
  kWakeSecond,
  kPutBack,
  kWakeAll,
  kEnd,
};

enum Left {
  kNothing,
  kBarrierOfOthers,
  kBarrierBeforeBit,
  kSecondTry,
  kFencedWithoutBarrier,
  kBarrierOfOwn,
  kBitBeforeMode,
  kCountOfPlain,
  kModeBeforeBit,
};

struct Case {
  size_t num_waiters;
  size_t num_senders;
  uint8_t to_receive;  // By the first that waits; one by each other.
  uint8_t to_send;     // By each sender.
  // The last sender could not register, and knows that it could not.
  bool one_is_unregistered = false;
  bool knows_it = true;
};

class FenceProtocol : public futex_model::Protocol {
 public:
  FenceProtocol(const Case &one, Left left)
      : Protocol(one.num_waiters + one.num_senders), case_(one), left_(left) {
  }

  bool IsDone(const State &state, size_t who) const override {
    return state.thread[who].pc == kEnd && state.thread[who].pending == 0;
  }
  std::string WrongWith(const State &) const override {
    return "";
  }
  void Step(const State &state, size_t who, std::vector<State> *out) override {
    if (state.thread[who].pending > 0) {
      State next = state;
      Drain(&next, who, 1);
      out->push_back(next);
    }
    if (who < case_.num_waiters) {
      Waiter(state, who, out);
    } else {
      Sender(state, who, out);
    }
  }

  std::string ExploreFrom(uint8_t word, uint8_t fence) {
    State state = {};
    state.word = word;
    state.fence = fence;
    for (size_t i = 0; i < num_threads_; i++) {
      bool waits = i < case_.num_waiters;
      state.thread[i].pc = waits ? kTry : kPut;
      state.thread[i].times_left = i == 0  ? case_.to_receive
                                   : waits ? 1
                                           : case_.to_send;
    }
    return Explore(state);
  }

 private:
  static uint8_t WithMode(uint8_t fence, uint8_t mode) {
    return static_cast<uint8_t>((fence & ~kModes) | mode);
  }
  static void Drain(State *state, size_t who, uint8_t count) {
    state->data = static_cast<uint8_t>(state->data + count);
    state->thread[who].pending =
        static_cast<uint8_t>(state->thread[who].pending - count);
  }
  bool IsUnregistered(size_t who) const {
    return case_.one_is_unregistered && who == num_threads_ - 1;
  }
  // It has a barrier of its own whatever the mode.
  bool AlwaysFences(size_t who) const {
    return IsUnregistered(who) && case_.knows_it;
  }
  bool AnyAsleep(const State &state) const {
    for (size_t i = 0; i < case_.num_waiters; i++) {
      if (state.thread[i].is_asleep != 0) {
        return true;
      }
    }
    return false;
  }

  static void Took(Thread *mine) {
    mine->times_left--;
    mine->pc = mine->times_left == 0 ? kEnd : kTry;
    mine->seen = mine->fence = mine->has_asked = 0;
  }

  void Waiter(const State &state, size_t who, std::vector<State> *out) const {
    if (state.thread[who].is_asleep != 0 || state.thread[who].pc == kEnd) {
      return;
    }
    State next = state;
    Thread &mine = next.thread[who];
    switch (mine.pc) {
      case kTry:
      case kTryAgain:
        if (state.data != 0) {
          next.data--;
          Took(&mine);
        } else if (mine.pc == kTryAgain) {
          mine.pc = kSleep;
        } else {
          mine.pc = left_ == kModeBeforeBit      ? kLookAtMode
                    : left_ == kBarrierBeforeBit ? kBarrierInAll
                                                 : kMark;
        }
        break;
      case kMark:
        next.word |= kWaiters;
        mine.seen = next.word;
        mine.pc = left_ == kModeBeforeBit      ? AfterMode(mine)
                  : left_ == kBarrierBeforeBit ? kTryAgain
                                               : kLookAtMode;
        break;
      case kLookAtMode:
        mine.fence = state.fence;
        mine.pc = left_ == kModeBeforeBit ? kMark : AfterMode(mine);
        break;
      case kAsk: {
        uint8_t asked = WithMode(mine.fence, kAsked);
        mine.has_asked = state.fence == mine.fence;
        if (mine.has_asked != 0) {
          next.fence =
              left_ == kFencedWithoutBarrier ? WithMode(asked, kFenced) : asked;
        }
        mine.fence = asked;
        mine.pc = left_ == kBarrierOfOthers ? kSayFenced : kBarrierInAll;
        break;
      }
      case kBarrierInAll: {
        // Of one after the other.
        size_t victim = case_.num_waiters + mine.next;
        if (!IsUnregistered(victim)) {
          Drain(&next, victim, next.thread[victim].pending);
        }
        if (++mine.next == case_.num_senders) {
          mine.next = 0;
          mine.pc = left_ == kBarrierBeforeBit ? kMark : kSayFenced;
        }
        break;
      }
      case kSayFenced:
        if (mine.has_asked != 0 && state.fence == mine.fence) {
          next.fence = WithMode(mine.fence, kFenced);
        }
        mine.pc = AfterFenced();
        break;
      case kSleep:
        mine.is_asleep = state.word == mine.seen;
        mine.pc = kTry;
        mine.seen = mine.fence = mine.has_asked = 0;
        break;
      default:
        return;
    }
    out->push_back(next);
  }
  Pc AfterMode(const Thread &mine) const {
    return (mine.fence & kModes) == kFenced ? AfterFenced() : kAsk;
  }
  Pc AfterFenced() const {
    return left_ == kSecondTry ? kSleep : kTryAgain;
  }

  static void Sent(Thread *mine) {
    mine->times_left--;
    mine->pc = mine->times_left == 0 ? kEnd : kPut;
    mine->seen = mine->fence = mine->waiters = 0;
  }
  void AfterBit(Thread *mine) const {
    if (mine->waiters != 0) {
      mine->pc = kClear;
      mine->num_quiet = 0;
    } else {
      Sent(mine);
    }
  }

  void Sender(const State &state, size_t who, std::vector<State> *out) const {
    State next = state;
    Thread &mine = next.thread[who];
    bool is_drained = mine.pending == 0;
    uint8_t bit = state.word & kWaiters;
    switch (mine.pc) {
      case kPut:
        mine.pending++;
        mine.pc = left_ == kBitBeforeMode ? kLoadBit : kLoadMode;
        break;
      case kLoadMode:
        mine.fence = state.fence;
        if ((mine.fence & kModes) != kPlain || AlwaysFences(who)) {
          mine.pc = left_ == kBarrierOfOwn ? kLoadBitFenced : kOwnBarrier;
        } else if (left_ == kBitBeforeMode) {
          AfterBit(&mine);
        } else {
          mine.pc = kLoadBit;
        }
        break;
      case kLoadBit:
        mine.waiters = bit;
        if (left_ == kBitBeforeMode) {
          mine.pc = kLoadMode;
        } else {
          AfterBit(&mine);
        }
        break;
      case kOwnBarrier:
        if (!is_drained) {
          return;
        }
        mine.pc = kLoadBitFenced;
        break;
      case kLoadBitFenced:
        mine.waiters = bit;
        if (bit == 0 && ++mine.num_quiet >= kQuietMax) {
          mine.num_quiet = 0;
          mine.pc = kPlainLoad;
        } else {
          AfterBit(&mine);
        }
        break;
      case kPlainLoad:
        mine.fence = state.fence;
        if ((mine.fence & kModes) == kPlain) {
          Sent(&mine);
        } else {
          mine.pc = kPlainChange;
        }
        break;
      // From here on all are locked instructions.
      case kPlainChange:
        if (!is_drained) {
          return;
        }
        if (state.fence != mine.fence) {
          Sent(&mine);
          break;
        }
        next.fence = WithMode(
            static_cast<uint8_t>(
                left_ == kCountOfPlain ? mine.fence : mine.fence + kOneCount),
            kPlain);
        Sent(&mine);
        break;
      case kClear:
        if (!is_drained) {
          return;
        }
        next.word = static_cast<uint8_t>((state.word + 2) & 0xfe);
        mine.seen = next.word;
        if (bit == 0) {
          Sent(&mine);
        } else {
          mine.pc = kWakeFirst;
        }
        break;
      case kWakeFirst:
      case kWakeSecond:
        if (!AnyAsleep(state)) {
          Sent(&mine);
        } else {
          mine.pc = mine.pc == kWakeFirst ? kWakeSecond : kPutBack;
        }
        Wake(next, false, out);
        return;
      case kPutBack:
        next.word |= kWaiters;
        if ((state.word & 0xfe) != mine.seen) {
          mine.pc = kWakeAll;
        } else {
          Sent(&mine);
        }
        break;
      case kWakeAll:
        Sent(&mine);
        Wake(next, true, out);
        return;
      default:
        return;
    }
    out->push_back(next);
  }

  Case case_;
  Left left_;
};

constexpr Case kCases[] = {
    {1, 1, 2, 2}, {1, 1, 3, 3, true}, {2, 1, 1, 2},
    {1, 2, 2, 1}, {1, 2, 4, 2, true}, {2, 1, 3, 4},
};

std::string ExploreAll(Left left, bool prints) {
  for (const Case &one : kCases) {
    for (uint8_t word : {0, 1, 255}) {
      // Modes to begin with; a count that is about to wrap around.
      for (uint8_t fence : {0xfc | kPlain, 0xfc | kAsked, 0xfc | kFenced}) {
        if (one.to_send == 4 && word + fence != 0xfc) {
          continue;
        }
        FenceProtocol protocol(one, left);
        std::string wrong = protocol.ExploreFrom(word, fence);
        if (!wrong.empty()) {
          return wrong;
        }
        if (prints) {
          printf("%zu that wait, %zu that send, %d each: %zu states\n",
                 one.num_waiters, one.num_senders, one.to_send,
                 protocol.num_states());
        }
      }
    }
  }
  return "";
}

TEST(PortFenceModelTest, NoWakeUpIsLost) {
  EXPECT_EQ(ExploreAll(kNothing, true), "");
}

TEST(PortFenceModelTest, EachStepIsNeeded) {
  for (Left left :
       {kBarrierOfOthers, kBarrierBeforeBit, kSecondTry, kFencedWithoutBarrier,
        kBarrierOfOwn, kBitBeforeMode, kCountOfPlain, kModeBeforeBit}) {
    EXPECT_NE(ExploreAll(left, false), "") << left;
  }
}

// It relies on barriers that it does not get.
TEST(PortFenceModelTest, OneThatIsNotRegisteredHasToKnow) {
  FenceProtocol protocol({1, 1, 1, 1, true, false}, kNothing);
  EXPECT_NE(protocol.ExploreFrom(0, kPlain), "");
}

}  // namespace
