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

// -- The event: bit 0 W, then the count. Threads 0 and 1 wait until `data` has
// what they need; the last one adds to it and notifies.

class EventProtocol : public Protocol {
 public:
  enum Pc : uint8_t {
    kKey,
    kCheck,
    kLook,
    kMark,
    kWait,
    kAdd,
    kNotify,
    kWake,
    kClear,
    kWakeAll,
    kDone
  };
  enum Omission {
    kNothing,
    kCountWithClear,
    kCompareInKernel,
    kClearWakesAll,
    kMarkIsNotSet
  };

  EventProtocol(size_t num_threads, bool one, Omission omission)
      : Protocol(num_threads), one_(one), omission_(omission) {
  }

  void Step(const State &state, size_t who, std::vector<State> *out) override {
    if (state.thread[who].is_asleep != 0) {
      return;
    }
    if (who + 1 == num_threads_) {
      Notifier(state, who, out);
    } else {
      Waiter(state, who, out);
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
        mine.pc = kCheck;
        break;
      case kCheck:
        // Each waiter needs one more than the other.
        mine.pc = state.data > who ? kDone : kLook;
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

  void Notifier(const State &state, size_t who, std::vector<State> *out) const {
    State next = state;
    Thread &mine = next.thread[who];
    switch (mine.pc) {
      case kAdd:
        next.data++;
        mine.pc = one_ ? kNotify : kClear;
        break;
      case kNotify:
        mine.seen = state.word;
        next.word = static_cast<uint8_t>(state.word + 2);
        mine.pc = (state.word & 1) != 0 ? kWake : End(&mine);
        break;
      case kWake: {
        bool any = false;
        for (size_t i = 0; i < num_threads_; i++) {
          any |= state.thread[i].is_asleep != 0;
        }
        // Nobody there: the bit goes.
        mine.pc = any ? End(&mine) : kClear;
        // The same data may be what another waits for: condition variables wake
        // all that could go on. Here each notification is for all, in the order
        // of the queue.
        Wake(next, false, out);
        return;
      }
      case kClear:
        mine.seen = state.word;
        next.word = static_cast<uint8_t>(
            (state.word + (omission_ == kCountWithClear ? 0 : 2)) & 0xfe);
        mine.pc = (state.word & 1) != 0 && omission_ != kClearWakesAll
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

  bool one_;
  Omission omission_;
};

State EventStart(size_t num_threads, uint8_t word) {
  State state = {};
  state.word = word;
  for (size_t i = 0; i < num_threads; i++) {
    state.thread[i].pc = EventProtocol::kKey;
  }
  state.thread[num_threads - 1].pc = EventProtocol::kAdd;
  state.thread[num_threads - 1].times_left =
      static_cast<uint8_t>(num_threads - 1);
  return state;
}

TEST(EventModelTest, NotifyAllLosesNothing) {
  // From a count that wraps around, too.
  for (uint8_t word : {0, 252}) {
    EventProtocol protocol(3, false, EventProtocol::kNothing);
    EXPECT_EQ(protocol.Explore(EventStart(3, word)), "");
    printf("event, all: %zu states\n", protocol.num_states());
  }
}

TEST(EventModelTest, NotifyOneReachesTheOnlyWaiter) {
  for (uint8_t word : {0, 1, 252, 253}) {
    EventProtocol protocol(2, true, EventProtocol::kNothing);
    EXPECT_EQ(protocol.Explore(EventStart(2, word)), "");
    printf("event, one: %zu states\n", protocol.num_states());
  }
}

TEST(EventModelTest, EachStepIsNeeded) {
  for (auto omission :
       {EventProtocol::kCountWithClear, EventProtocol::kCompareInKernel,
        EventProtocol::kClearWakesAll, EventProtocol::kMarkIsNotSet}) {
    EventProtocol protocol(3, false, omission);
    EXPECT_NE(protocol.Explore(EventStart(3, 0)), "") << omission;
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
