// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Every interleaving of a mutex that is biased to one thread while others take
// it (mutex.c, lock_word.c), on a machine with store buffers (x86's order): the
// thread's notes are seen by itself alone until they leave its buffer, at any
// later step, at the latest before a compare-and-swap of its own, or when
// another has a barrier done in it. (futex_model.h; sleeps have no slices but
// after a death.)
//
// What must hold: one owner at most; nobody is left asleep; and if the thread
// died inside, the next that gets in is told. With a step left out that has to
// fail.

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/futex_model.h"

namespace {

using futex_model::State;
using futex_model::Thread;

// The word: bits 0..1 owner + 1, 2 DIED, 3 W, 4 S. Thread 0 has the bias.
constexpr uint8_t kOwner = 3;
constexpr uint8_t kDied = 4;
constexpr uint8_t kWaiters = 8;
constexpr uint8_t kShared = 16;
constexpr uint8_t kBias = 1;

// `data` of the state is the note as others see it; a thread's `pending` counts
// its stores under way, each of which turns the note over. `fence` of a thread
// says that it died and was recovered: its record is another's.

enum Pc : uint8_t {
  // Lock.
  kNote,
  kFirstLook,
  kLook,
  kTake,
  kTakeOwn,
  kMarkBias,
  kBarrier,
  kLookAtNote,
  kEndBias,
  kMark,
  kWait,
  // Unlock.
  kInside,
  kClear,
  kLookAgain,
  kFree,
  kWakeOne,
  kClearAfter,
  kDone,
};

enum Left {
  kNothing,
  kBarrierInOwner,
  kLookOfOther,
  kSecondLookOfOwner,
  kHeedOfMark,
  kExactValue,
  kDiedBeforeRecovered,
};

class BiasProtocol : public futex_model::Protocol {
 public:
  BiasProtocol(size_t num_threads, Left left)
      : Protocol(num_threads), left_(left) {
  }

  bool IsDone(const State &state, size_t who) const override {
    return state.thread[who].pc == kDone && state.thread[who].pending == 0;
  }

  std::string WrongWith(const State &state) const override {
    if (state.inside > 1) {
      return "two owners";
    }
    for (size_t i = 0; i < num_threads_; i++) {
      const Thread &one = state.thread[i];
      if (state.died_inside == 1 && one.is_dead == 0 && one.pc == kInside &&
          one.told == 0) {
        return "its owner died, and nobody was told";
      }
    }
    return "";
  }

  void Step(const State &state, size_t who, std::vector<State> *out) override {
    if (who == 0) {
      Drain(state, out);
    }
    Die(state, who, out);
    for (size_t dead = 0; dead < num_threads_; dead++) {
      if (state.thread[dead].is_dead != 0 && state.thread[dead].fence == 0) {
        Recover(state, dead, out);
      }
    }
    const Thread &me = state.thread[who];
    if (me.is_asleep != 0) {
      // A slice ends: after a death.
      if (AnyDead(state)) {
        State next = state;
        next.thread[who].is_asleep = 0;
        next.thread[who].pc = kLook;
        TakeFromTheDead(&next, who);
        out->push_back(next);
      }
      return;
    }
    if (who == 0 && me.pending != 0 && IsLocked(me.pc)) {
      return;  // Not before the buffer is empty.
    }
    if (me.pc <= kWait) {
      Lock(state, who, out);
    } else if (me.pc != kDone) {
      Unlock(state, who, out);
    }
  }

  std::string ExploreFrom(uint8_t word, uint8_t times_of_owner,
                          uint8_t times_of_others, uint8_t deaths) {
    State state = {};
    state.word = word;
    state.deaths_left = deaths;
    for (size_t i = 0; i < num_threads_; i++) {
      state.thread[i].pc = kNote;
      state.thread[i].times_left = i == 0 ? times_of_owner : times_of_others;
    }
    return Explore(state);
  }

 private:
  // Compare-and-swaps.
  static bool IsLocked(uint8_t pc) {
    return pc == kTake || pc == kTakeOwn || pc == kMark || pc == kWait ||
           pc == kFree;
  }
  static uint8_t Name(size_t who) {
    return static_cast<uint8_t>(who + 1);
  }
  static bool IsBiased(uint8_t word) {
    return (word & kOwner) != 0 && (word & (kShared | kDied)) == 0;
  }
  static void TurnNote(State *state, uint8_t times) {
    state->data = static_cast<uint8_t>((state->data + times) % 2);
    state->thread[0].pending =
        static_cast<uint8_t>(state->thread[0].pending - times);
  }
  static void Drain(const State &state, std::vector<State> *out) {
    if (state.thread[0].pending != 0) {
      State next = state;
      TurnNote(&next, 1);
      out->push_back(next);
    }
  }

  bool AnyDead(const State &state) const {
    for (size_t i = 0; i < num_threads_; i++) {
      if (state.thread[i].is_dead != 0) {
        return true;
      }
    }
    return false;
  }

  // A thread dies. The kernel's entry empties its buffer.
  static void Die(const State &state, size_t who, std::vector<State> *out) {
    if (state.deaths_left == 0) {
      return;
    }
    State next = state;
    next.deaths_left--;
    next.thread[who].is_dead = 1;
    if (who == 0) {
      TurnNote(&next, state.thread[0].pending);
    }
    if (state.thread[who].pc == kInside) {
      next.inside--;
      next.died_inside = 1;
    }
    out->push_back(next);
  }

  // Somebody recovers it (slot.c). Those without the bias note what they take
  // until it is free again.
  void Recover(const State &state, size_t dead, std::vector<State> *out) const {
    State next = state;
    next.thread[dead].fence = 1;
    bool is_noted = dead != 0 || state.data != 0;
    if (is_noted && (state.word & kOwner) == Name(dead) &&
        left_ != kDiedBeforeRecovered) {
      next.word =
          static_cast<uint8_t>(kShared | kDied | (state.word & kWaiters));
      for (size_t i = 0; i < num_threads_; i++) {
        next.thread[i].is_asleep = 0;
      }
    }
    if (dead == 0) {
      next.data = 0;
    }
    out->push_back(next);
  }

  static void Enter(State *state, size_t who, uint8_t died) {
    Thread &mine = state->thread[who];
    mine.told = died != 0;
    mine.pc = kInside;
    state->inside++;
    if (died != 0) {
      state->died_inside = 2;  // Somebody knows.
    }
  }
  static void TakeFromTheDead(State *state, size_t who) {
    uint8_t owner = state->word & kOwner;
    if (owner != 0 && state->thread[owner - 1].is_dead != 0 &&
        !IsBiased(state->word)) {
      state->word =
          static_cast<uint8_t>(kShared | kDied | kWaiters | Name(who));
      Enter(state, who, kDied);
    }
  }

  void Look(const State &state, size_t who, Thread *mine, State *next) const {
    uint8_t seen = state.word;
    mine->seen = seen;
    bool is_mine = (seen & kOwner) == Name(who);
    if ((seen & kOwner) == 0) {
      mine->pc = kTake;
    } else if (IsBiased(seen) && is_mine) {
      if ((seen & kWaiters) == 0 || left_ == kHeedOfMark) {
        Enter(next, who, 0);
      } else {
        mine->pc = kTakeOwn;
      }
    } else if (IsBiased(seen)) {
      mine->pc = kMarkBias;
    } else if (is_mine) {
      Enter(next, who, 0);  // Another has given it our name.
    } else {
      mine->pc = kMark;
    }
  }

  void Lock(const State &state, size_t who, std::vector<State> *out) const {
    State next = state;
    Thread &mine = next.thread[who];
    bool is_same = state.word == mine.seen;
    switch (mine.pc) {
      case kNote:
        mine.pending = static_cast<uint8_t>(mine.pending + (who == 0));
        mine.pc = kFirstLook;
        break;
      case kFirstLook:
        if (state.word == Name(who)) {
          Enter(&next, who, 0);
        } else {
          mine.pc = kLook;
        }
        break;
      case kLook:
        Look(state, who, &mine, &next);
        break;
      case kTake:
        mine.pc = kLook;
        if (is_same) {
          next.word = static_cast<uint8_t>((state.word & (kDied | kWaiters)) |
                                           kShared | mine.waiters | Name(who));
          Enter(&next, who, state.word & kDied);
        }
        break;
      case kTakeOwn:
        mine.pc = kLook;
        if (is_same) {
          next.word |= kShared;
          Enter(&next, who, 0);
        }
        break;
      case kMarkBias:
        mine.pc = kLook;
        if (is_same) {
          next.word |= kWaiters;
          mine.seen = next.word;
          mine.pc = left_ == kBarrierInOwner ? kLookAtNote : kBarrier;
        }
        break;
      case kBarrier:
        TurnNote(&next, state.thread[0].pending);
        mine.pc = kLookAtNote;
        break;
      case kLookAtNote:
        // Of a recovered thread the record is another's.
        mine.next = state.data != 0 && state.thread[0].fence == 0 &&
                            left_ != kLookOfOther
                        ? Name(0)
                        : Name(who);
        mine.pc = kEndBias;
        break;
      case kEndBias:
        mine.pc = kLook;
        if (is_same || left_ == kExactValue) {
          next.word = static_cast<uint8_t>(kShared | kWaiters | mine.next);
          if (mine.next == Name(who)) {
            Enter(&next, who, 0);
          }
        }
        mine.next = 0;
        break;
      case kMark:
        mine.pc = kLook;
        if (is_same) {
          next.word |= kWaiters;
          mine.seen = next.word;
          mine.waiters = kWaiters;
          mine.pc = kWait;
        }
        break;
      case kWait:
        mine.is_asleep = is_same;
        mine.pc = kLook;
        break;
      default:
        return;
    }
    out->push_back(next);
  }

  static void End(Thread *mine) {
    mine->waiters = mine->seen = mine->told = 0;
    mine->pc = --mine->times_left == 0 ? kDone : kNote;
  }

  void Unlock(const State &state, size_t who, std::vector<State> *out) const {
    State next = state;
    Thread &mine = next.thread[who];
    uint8_t word = state.word;
    switch (mine.pc) {
      case kInside:
        mine.told = 0;  // Repaired.
        if ((word & kOwner) == Name(who)) {
          next.word &= static_cast<uint8_t>(~kDied);
        }
        next.inside--;
        mine.pc = word == Name(who) ? kClear : kFree;
        break;
      case kClear:
        mine.pending++;
        if (left_ == kSecondLookOfOwner) {
          End(&mine);
        } else {
          mine.pc = kLookAgain;
        }
        break;
      case kLookAgain:
        if (word == Name(who)) {
          End(&mine);
        } else {
          // The note is gone already.
          mine.next = 1;
          mine.pc = kFree;
        }
        break;
      case kFree: {
        // Only by whom it names.
        bool is_mine = (word & kOwner) == Name(who);
        if (is_mine) {
          next.word = kShared;
        }
        mine.pc = is_mine && (word & kWaiters) != 0 ? kWakeOne : kClearAfter;
        break;
      }
      case kWakeOne:
        mine.pc = kClearAfter;
        Wake(next, false, out);
        return;
      case kClearAfter:
        mine.pending =
            static_cast<uint8_t>(mine.pending + (who == 0 && mine.next == 0));
        mine.next = 0;
        End(&mine);
        break;
      default:
        return;
    }
    out->push_back(next);
  }

  Left left_;
};

TEST(LockBiasModelTest, OneOwnerAndNoSleeperForgotten) {
  for (size_t num_threads : {2, 3}) {
    BiasProtocol protocol(num_threads, kNothing);
    EXPECT_EQ(protocol.ExploreFrom(kBias, 3, 2, 0), "");
    printf("bias, %zu threads: %zu states\n", num_threads,
           protocol.num_states());
  }
}

TEST(LockBiasModelTest, ADeathAtAnyStepIsTold) {
  for (size_t num_threads : {2, 3}) {
    BiasProtocol protocol(num_threads, kNothing);
    uint8_t times_of_others = num_threads == 2 ? 2 : 1;
    EXPECT_EQ(protocol.ExploreFrom(kBias, 2, times_of_others, 1), "");
    printf("bias, %zu threads, a death: %zu states\n", num_threads,
           protocol.num_states());
  }
}

TEST(LockBiasModelTest, EachStepIsNeeded) {
  for (Left left : {kBarrierInOwner, kLookOfOther, kSecondLookOfOwner,
                    kHeedOfMark, kExactValue}) {
    BiasProtocol protocol(2, left);
    std::string wrong = protocol.ExploreFrom(kBias, 3, 2, 0);
    EXPECT_NE(wrong, "") << left;
    printf("without step %d: %s\n", left, wrong.c_str());
  }
  BiasProtocol protocol(2, kDiedBeforeRecovered);
  EXPECT_EQ(protocol.ExploreFrom(kBias, 2, 2, 1),
            "its owner died, and nobody was told");
}

}  // namespace
