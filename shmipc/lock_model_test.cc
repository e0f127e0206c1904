// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Every interleaving of the protocol of lock_word.c for three threads
// (futex_model.h).
//
// Sleeps have no slices in the model: nobody may be left asleep by the protocol
// alone. With deaths, when slices are what saves the others, a sleeper may look
// again at any time once somebody has died.
//
// What must hold: one owner at most; no state in which nobody can go on and not
// all are done; of one death, one is told. The protocol is explored with a step
// left out, too, and has to fail then, or the model would prove nothing.

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

// -- The lock word: bits 0..1 owner + 1, 2 DIED, 3 W.

constexpr uint8_t kOwner = 3;
constexpr uint8_t kDied = 4;
constexpr uint8_t kWaiters = 8;

class LockProtocol : public Protocol {
 public:
  enum Pc : uint8_t {
    kFast,
    kLook,
    kTake,
    kMark,
    kWait,
    kInside,
    kFree,
    kWakeOne,
    kDone
  };
  enum Omission {
    kNothing,
    kWaitersWhenTaken,
    kCompareInKernel,
    kWakeAtFree,
    kMarkBeforeGivingUp
  };

  LockProtocol(size_t num_threads, Omission omission)
      : Protocol(num_threads), omission_(omission) {
  }

  void Step(const State &state, size_t who, std::vector<State> *out) override {
    const Thread &me = state.thread[who];
    Die(state, who, out);
    if (me.is_asleep != 0) {
      // A slice ends: with a death, or for one that may give up.
      if (state.died_inside != 0 || AnyDead(state) || me.may_give_up != 0) {
        State next = state;
        next.thread[who].is_asleep = 0;
        next.thread[who].pc = kLook;
        TakeFromTheDead(&next, who);
        out->push_back(next);
        if (me.may_give_up != 0) {
          // Leaves. (The wake-up may have been for it.)
          next = state;
          next.thread[who].is_asleep = 0;
          next.thread[who].pc = kDone;
          out->push_back(next);
        }
      }
      return;
    }
    State next = state;
    Thread &mine = next.thread[who];
    switch (me.pc) {
      case kFast:
        if (state.word == 0) {
          Take(&next, who, 0);
        } else {
          mine.pc = kLook;
        }
        break;
      case kLook:
        mine.seen = state.word;
        mine.pc = (state.word & kOwner) == 0 ? kTake : kMark;
        break;
      case kTake:
        if (state.word == me.seen) {
          Take(&next, who, me.waiters);
        } else {
          mine.pc = kLook;
        }
        break;
      case kMark:
        if (me.may_give_up != 0 && omission_ == kMarkBeforeGivingUp) {
          // The deadline passed, looked at before the mark.
          State left = state;
          left.thread[who].pc = kDone;
          out->push_back(left);
        }
        if (state.word == me.seen) {
          next.word |= kWaiters;
          mine.seen = next.word;
          mine.waiters = omission_ == kWaitersWhenTaken ? 0 : kWaiters;
          mine.pc = kWait;
        } else {
          mine.pc = kLook;
        }
        break;
      case kWait:
        // The kernel compares and queues in one step.
        if (state.word == me.seen || omission_ == kCompareInKernel) {
          mine.is_asleep = 1;
        }
        mine.pc = kLook;
        if (me.may_give_up != 0) {
          State left = state;
          left.thread[who].pc = kDone;
          out->push_back(left);
        }
        break;
      case kInside:
        mine.told = 0;  // Repaired: consistent.
        next.word &= static_cast<uint8_t>(~kDied);
        next.inside--;
        mine.pc = kFree;
        break;
      case kFree:
        mine.seen = state.word;
        next.word = 0;
        mine.pc = (state.word & kWaiters) != 0 && omission_ != kWakeAtFree
                      ? kWakeOne
                      : End(&mine);
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
    if (state.inside > 1) {
      return "two owners";
    }
    size_t num_told = 0;
    for (const Thread &thread : state.thread) {
      num_told += thread.told != 0 && thread.is_dead == 0;
    }
    return num_told > 1 ? "two were told of one death" : "";
  }

 private:
  static bool AnyDead(const State &state) {
    for (const Thread &thread : state.thread) {
      if (thread.is_dead != 0) {
        return true;
      }
    }
    return false;
  }

  static Pc End(Thread *thread) {
    thread->waiters = 0;
    return --thread->times_left == 0 ? kDone : kFast;
  }

  void Take(State *state, size_t who, uint8_t waiters) const {
    Thread &mine = state->thread[who];
    mine.told = (state->word & kDied) != 0;
    state->word = static_cast<uint8_t>((state->word & (kDied | kWaiters)) |
                                       waiters | (who + 1));
    state->inside++;
    mine.pc = kInside;
  }

  // At the end of a slice: the owner is dead, so the word is taken from it.
  void TakeFromTheDead(State *state, size_t who) const {
    uint8_t owner = state->word & kOwner;
    if (owner == 0 || state->thread[owner - 1].is_dead == 0) {
      return;
    }
    state->word = static_cast<uint8_t>(kDied | kWaiters | (who + 1));
    state->thread[who].told = 1;
    state->inside++;
    state->thread[who].pc = kInside;
  }

  // A thread may die at any step.
  static void Die(const State &state, size_t who, std::vector<State> *out) {
    if (state.deaths_left == 0) {
      return;
    }
    State next = state;
    next.deaths_left--;
    next.thread[who].is_dead = 1;
    if (state.thread[who].pc == kInside) {
      next.inside--;
      next.died_inside = 1;
    }
    out->push_back(next);
  }

  Omission omission_;
};

State LockStart(size_t num_threads, uint8_t times, uint8_t deaths,
                bool one_gives_up) {
  State state = {};
  state.deaths_left = deaths;
  for (size_t i = 0; i < num_threads; i++) {
    state.thread[i].pc = LockProtocol::kFast;
    state.thread[i].times_left = times;
  }
  state.thread[0].may_give_up = one_gives_up;
  return state;
}

TEST(LockModelTest, NoWakeUpIsLostWithoutSlices) {
  LockProtocol protocol(3, LockProtocol::kNothing);
  EXPECT_EQ(protocol.Explore(LockStart(3, 2, 0, false)), "");
  printf("lock, 3 threads twice: %zu states\n", protocol.num_states());
  EXPECT_EQ(protocol.Explore(LockStart(3, 2, 0, true)), "");
  printf("lock, one gives up: %zu states\n", protocol.num_states());
}

TEST(LockModelTest, DeathAtAnyStepHarmsNobody) {
  LockProtocol protocol(3, LockProtocol::kNothing);
  for (uint8_t deaths : {1, 2}) {
    EXPECT_EQ(protocol.Explore(LockStart(3, 2, deaths, false)), "");
    printf("lock, %d deaths: %zu states\n", deaths, protocol.num_states());
  }
}

TEST(LockModelTest, EachStepIsNeeded) {
  for (auto omission :
       {LockProtocol::kWaitersWhenTaken, LockProtocol::kCompareInKernel,
        LockProtocol::kWakeAtFree}) {
    LockProtocol protocol(3, omission);
    EXPECT_NE(protocol.Explore(LockStart(3, 2, 0, false)), "") << omission;
  }
  LockProtocol protocol(3, LockProtocol::kMarkBeforeGivingUp);
  EXPECT_NE(protocol.Explore(LockStart(3, 2, 0, true)), "");
}

}  // namespace
