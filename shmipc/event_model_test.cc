// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Every interleaving of the protocols of event.c and semaphore.c for two or
// three threads (futex_model.h), without the slices of the sources: nobody may
// be left asleep. With a step left out each has to fail.

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/futex_model.h"

namespace {

using futex_model::Protocol;
using futex_model::State;
using futex_model::Thread;

// -- The event: bit 0 W, then the count. The first threads wait for a token in
// `data` and take one each; the others put tokens there and notify.

class EventProtocol : public Protocol {
 public:
  enum Pc : uint8_t {
    kKey,
    kTakeToken,
    kLook,
    kMark,
    kWait,
    kAdd,
    kNotify,
    kWakeFirst,
    kWakeSecond,
    kPutBack,
    kWakeAll,
    kDone,
  };
  enum Omission {
    kNothing,
    kCountWithClear,
    kCompareInKernel,
    kWakeAfterClear,
    kMarkIsNotSet,
    kBitIsNotPutBack,
    kMissedInBetween,
  };

  EventProtocol(size_t num_waiters, size_t num_notifiers, bool one,
                Omission omission)
      : Protocol(num_waiters + num_notifiers),
        num_waiters_(num_waiters),
        one_(one),
        omission_(omission) {
  }

  void Step(const State &state, size_t who, std::vector<State> *out) override {
    if (state.thread[who].is_asleep != 0) {
      return;
    }
    if (who < num_waiters_) {
      Waiter(state, who, out);
    } else {
      Notifier(state, who, out);
    }
  }

  bool IsDone(const State &state, size_t who) const override {
    return state.thread[who].pc == kDone;
  }

  std::string WrongWith(const State &) const override {
    return "";
  }

 private:
  void Waiter(const State &state, size_t who, std::vector<State> *out) const {
    State next = state;
    Thread &mine = next.thread[who];
    switch (mine.pc) {
      case kKey:
        mine.seen = state.word & 0xfe;
        mine.pc = kTakeToken;
        break;
      case kTakeToken:
        mine.pc = state.data != 0 ? kDone : kLook;
        next.data = static_cast<uint8_t>(state.data - (state.data != 0));
        break;
      case kLook:
        if ((state.word & 0xfe) != mine.seen) {
          mine.pc = kKey;
        } else {
          mine.pc = (state.word & 1) == 0 ? kMark : kWait;
        }
        break;
      case kMark:
        if (state.word == mine.seen) {
          next.word |= omission_ == kMarkIsNotSet ? 0 : 1;
          mine.pc = kWait;
        } else {
          mine.pc = kLook;
        }
        break;
      case kWait:
        if (omission_ == kCompareInKernel ||
            state.word == (mine.seen | (omission_ == kMarkIsNotSet ? 0 : 1))) {
          mine.is_asleep = 1;
        }
        mine.pc = kLook;
        break;
      default:
        return;
    }
    out->push_back(next);
  }

  bool AnyAsleep(const State &state) const {
    for (size_t i = 0; i < num_waiters_; i++) {
      if (state.thread[i].is_asleep != 0) {
        return true;
      }
    }
    return false;
  }

  void Notifier(const State &state, size_t who, std::vector<State> *out) const {
    State next = state;
    Thread &mine = next.thread[who];
    switch (mine.pc) {
      case kAdd:
        next.data++;
        mine.pc = kNotify;
        break;
      case kNotify: {
        bool had_waiters = (state.word & 1) != 0;
        next.word = static_cast<uint8_t>(
            (state.word + (omission_ == kCountWithClear ? 0 : 2)) & 0xfe);
        mine.seen = next.word;
        mine.pc = !had_waiters || omission_ == kWakeAfterClear
                      ? End(&mine)
                      : (one_ ? kWakeFirst : kWakeAll);
        break;
      }
      // The kernel wakes the two in one step; two steps are more interleavings.
      case kWakeFirst:
        mine.pc = AnyAsleep(state) ? kWakeSecond : End(&mine);
        Wake(next, false, out);
        return;
      case kWakeSecond:
        mine.pc = AnyAsleep(state) && omission_ != kBitIsNotPutBack
                      ? kPutBack
                      : End(&mine);
        Wake(next, false, out);
        return;
      case kPutBack:
        next.word |= 1;
        mine.pc =
            (state.word & 0xfe) != mine.seen && omission_ != kMissedInBetween
                ? kWakeAll
                : End(&mine);
        break;
      case kWakeAll:
        mine.pc = End(&mine);
        Wake(next, true, out);
        return;
      default:
        return;
    }
    out->push_back(next);
  }

  static Pc End(Thread *thread) {
    return --thread->times_left == 0 ? kDone : kAdd;
  }

  size_t num_waiters_;
  bool one_;
  Omission omission_;
};

// As many tokens as waiters; the first notifier has what the others have not.
State EventStart(size_t num_waiters, size_t num_notifiers, uint8_t word) {
  State state = {};
  state.word = word;
  for (size_t i = 0; i < num_waiters; i++) {
    state.thread[i].pc = EventProtocol::kKey;
  }
  for (size_t i = 0; i < num_notifiers; i++) {
    state.thread[num_waiters + i].pc = EventProtocol::kAdd;
    state.thread[num_waiters + i].times_left =
        static_cast<uint8_t>(i == 0 ? num_waiters - num_notifiers + 1 : 1);
  }
  return state;
}

TEST(EventModelTest, NoNotificationIsLost) {
  // From counts that wrap around, too, and with a bit that a dead waiter left.
  for (uint8_t word : {0, 1, 252, 253}) {
    for (bool one : {false, true}) {
      for (size_t num_waiters : {1, 2, 3}) {
        for (size_t num_notifiers : {1, 2}) {
          if (num_notifiers > num_waiters) {
            continue;
          }
          EventProtocol protocol(num_waiters, num_notifiers, one,
                                 EventProtocol::kNothing);
          EXPECT_EQ(
              protocol.Explore(EventStart(num_waiters, num_notifiers, word)),
              "")
              << one << num_waiters << num_notifiers;
          if (num_waiters == 3 && num_notifiers == 2) {
            printf("event, notify %s: %zu states\n", one ? "one" : "all",
                   protocol.num_states());
          }
        }
      }
    }
  }
}

TEST(EventModelTest, EachStepIsNeeded) {
  for (auto omission :
       {EventProtocol::kCountWithClear, EventProtocol::kCompareInKernel,
        EventProtocol::kWakeAfterClear, EventProtocol::kMarkIsNotSet}) {
    EventProtocol protocol(3, 2, false, omission);
    EXPECT_NE(protocol.Explore(EventStart(3, 2, 0)), "") << omission;
  }
  for (auto omission :
       {EventProtocol::kBitIsNotPutBack, EventProtocol::kMissedInBetween}) {
    EventProtocol protocol(4, 1, true, omission);
    EventProtocol two(3, 2, true, omission);
    EXPECT_NE(protocol.Explore(EventStart(4, 1, 0)) +
                  two.Explore(EventStart(3, 2, 0)),
              "")
        << omission;
  }
}

// -- The semaphore: value in bits 0..2, W is 8. Each thread takes one unit and
// puts it back.

class SemaphoreProtocol : public Protocol {
 public:
  enum Pc : uint8_t {
    kLook,
    kTake,
    kPassOn,
    kMark,
    kWait,
    kPost,
    kWakeOne,
    kDone
  };
  enum Omission {
    kNothing,
    kWaitersWhenTaken,
    kPassingOn,
    kCompareInKernel
  };

  SemaphoreProtocol(size_t num_threads, Omission omission)
      : Protocol(num_threads), omission_(omission) {
  }

  void Step(const State &state, size_t who, std::vector<State> *out) override {
    if (state.thread[who].is_asleep != 0) {
      return;
    }
    State next = state;
    Thread &mine = next.thread[who];
    switch (mine.pc) {
      case kLook:
        mine.seen = state.word;
        mine.pc = (state.word & 7) != 0 ? kTake : kMark;
        break;
      case kTake:
        if (state.word != mine.seen) {
          mine.pc = kLook;
          break;
        }
        next.word = static_cast<uint8_t>((state.word - 1) | mine.waiters);
        mine.pc = mine.is_dead == 0 && mine.told != 0 &&
                          ((state.word - 1) & 7) != 0 && omission_ != kPassingOn
                      ? kPassOn
                      : kPost;
        next.inside++;
        break;
      case kPassOn:
        mine.pc = kPost;
        Wake(next, false, out);
        return;
      case kMark:
        if (state.word == 0 || state.word == 8) {
          next.word = 8;
          mine.pc = kWait;
        } else {
          mine.pc = kLook;
        }
        break;
      case kWait:
        if (state.word == 8 || omission_ == kCompareInKernel) {
          mine.is_asleep = 1;
        }
        mine.told = 1;  // Has slept.
        mine.waiters = omission_ == kWaitersWhenTaken ? 0 : 8;
        mine.pc = kLook;
        break;
      case kPost:
        mine.seen = state.word;
        next.inside--;
        next.word = static_cast<uint8_t>((state.word & 7) + 1);
        mine.pc = (state.word & 8) != 0 ? kWakeOne : End(&mine);
        break;
      case kWakeOne:
        mine.pc = End(&mine);
        Wake(next, false, out);
        return;
      default:
        return;
    }
    out->push_back(next);
  }

  bool IsDone(const State &state, size_t who) const override {
    return state.thread[who].pc == kDone;
  }

  std::string WrongWith(const State &state) const override {
    return (state.word & 7) + state.inside != state.data
               ? "units were lost or gained"
               : "";
  }

 private:
  static Pc End(Thread *thread) {
    thread->waiters = 0;
    thread->told = 0;
    return --thread->times_left == 0 ? kDone : kLook;
  }

  Omission omission_;
};

State SemaphoreStart(size_t num_threads, uint8_t units, uint8_t times) {
  State state = {};
  state.word = units;
  state.data = units;
  for (size_t i = 0; i < num_threads; i++) {
    state.thread[i].pc = SemaphoreProtocol::kLook;
    state.thread[i].times_left = times;
  }
  return state;
}

TEST(SemaphoreModelTest, NoUnitAndNoWakeUpIsLost) {
  for (uint8_t units : {1, 2}) {
    SemaphoreProtocol protocol(3, SemaphoreProtocol::kNothing);
    EXPECT_EQ(protocol.Explore(SemaphoreStart(3, units, 2)), "");
    printf("semaphore, %d units: %zu states\n", units, protocol.num_states());
  }
}

TEST(SemaphoreModelTest, EachStepIsNeeded) {
  for (auto omission : {SemaphoreProtocol::kWaitersWhenTaken,
                        SemaphoreProtocol::kCompareInKernel}) {
    SemaphoreProtocol protocol(3, omission);
    EXPECT_NE(protocol.Explore(SemaphoreStart(3, 1, 2)), "") << omission;
  }
}

}  // namespace
