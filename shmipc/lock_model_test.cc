// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Every interleaving of the futex protocols of lock_word.c, event.c and
// semaphore.c, for two or three threads: the steps of the sources, one memory
// access or system call each, explored exhaustively. All accesses that matter
// are read-modify-write or compared by the kernel, so memory is sequentially
// consistent here.
//
// Sleeps have no slices in the model: nobody may be left asleep by the protocol
// alone. With deaths, when slices are what saves the others, a sleeper may look
// again at any time once somebody has died.
//
// What must hold: one owner at most; no state in which nobody can go on and not
// all are done; after a death exactly one is told. Each protocol is explored
// with a step left out, too, and has to fail then, or the model would prove
// nothing.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

#include "gtest/gtest.h"

namespace {

constexpr size_t kMax = 3;

// The words; what they mean depends on the protocol.
struct Thread {
  uint8_t pc;
  uint8_t seen;
  uint8_t waiters;    // What it adds when it takes the word.
  uint8_t is_asleep;  // In the kernel's queue.
  uint8_t times_left;
  uint8_t is_dead;
  uint8_t may_give_up;
  uint8_t told;  // Got -EOWNERDEAD and has not repaired.
};

struct State {
  uint8_t word;
  uint8_t data;
  uint8_t inside;
  uint8_t deaths_left;
  uint8_t died_inside;
  std::array<Thread, kMax> thread;
};

std::string Key(const State &state) {
  return std::string(reinterpret_cast<const char *>(&state), sizeof(state));
}

// Steps a thread in one of possibly several ways. Adds what can come out of it.
class Protocol {
 public:
  explicit Protocol(size_t num_threads) : num_threads_(num_threads) {
  }
  virtual ~Protocol() = default;

  virtual void Step(const State &state, size_t who,
                    std::vector<State> *out) = 0;
  virtual bool IsDone(const State &state, size_t who) const = 0;
  virtual std::string WrongWith(const State &state) const = 0;

  // Returns the first thing that went wrong, or "".
  std::string Explore(const State &start) {
    std::vector<State> stack = {start};
    std::unordered_set<std::string> seen = {Key(start)};
    while (!stack.empty()) {
      State state = stack.back();
      stack.pop_back();
      std::string wrong = WrongWith(state);
      if (!wrong.empty()) {
        return wrong;
      }
      std::vector<State> next;
      bool is_done = true;
      for (size_t who = 0; who < num_threads_; who++) {
        if (state.thread[who].is_dead == 0 && !IsDone(state, who)) {
          is_done = false;
          Step(state, who, &next);
        }
      }
      if (next.empty() && !is_done) {
        return "nobody can go on: a wake-up was lost";
      }
      for (const State &one : next) {
        if (seen.insert(Key(one)).second) {
          stack.push_back(one);
        }
      }
    }
    num_states_ = seen.size();
    return "";
  }

  size_t num_states() const {
    return num_states_;
  }

 protected:
  // Wakes one sleeper (each choice is one outcome) or all.
  void Wake(const State &state, bool all, std::vector<State> *out) const {
    bool any = false;
    State everybody = state;
    for (size_t i = 0; i < num_threads_; i++) {
      if (state.thread[i].is_asleep != 0 && state.thread[i].is_dead == 0) {
        any = true;
        everybody.thread[i].is_asleep = 0;
        if (!all) {
          State one = state;
          one.thread[i].is_asleep = 0;
          out->push_back(one);
        }
      }
    }
    if (all || !any) {
      out->push_back(everybody);
    }
  }

  size_t num_threads_;
  size_t num_states_ = 0;
};

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
