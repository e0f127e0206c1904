// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Every interleaving of the ring's protocol, for a small ring: the steps of
// ring.c and ring_wait.c, one memory access each, of a producer and a consumer
// with a store buffer each (a store becomes visible at any later step, in
// order, as on x86; a read-modify-write empties the buffer first). Explored
// exhaustively, all reachable states being kept.
//
// What must hold: the consumer gets the bytes in order, none that is not there
// yet, none that was written over; and in no state are both sides stuck. The
// same protocol with plain accesses to the flag has to fail, or the model would
// prove nothing.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

#include "gtest/gtest.h"

namespace {

constexpr int kCapacity = 2;
constexpr int kBytes = 5;

// The shared words.
enum Word : uint8_t {
  kTail,
  kHead,
  kReadableAsleep,
  kReadableSignal,
  kWritableAsleep,
  kWritableSignal,
  kData0,
  kData1,
  kWords,
};

enum Pc : uint8_t {
  kCheckCopy,    // The own copy of the other's counter says no?
  kLoadCounter,  // Look at the real one.
  kReadSignal,   // Not yet: go to sleep.
  kRaiseAsleep,
  kLookAgain,
  kFutexWait,
  kSleeping,
  kLowerAsleep,
  kTransfer,  // The byte itself.
  kStoreCounter,
  kLoadAsleep,
  kClearAsleep,
  kBumpSignal,
  kFutexWake,
  kDone,
};

struct Side {
  Pc pc = kCheckCopy;
  uint8_t own = 0;   // The own counter.
  uint8_t copy = 0;  // Of the other's.
  uint8_t signal_seen = 0;
  uint8_t is_enough = 0;
  // Stores not yet visible, the oldest first.
  uint8_t pending = 0;
  std::array<uint8_t, 4> word = {};
  std::array<uint8_t, 4> value = {};
};

struct State {
  std::array<uint8_t, kWords> memory = {};
  Side side[2];  // 0 produces.
};

std::string Key(const State &state) {
  return std::string(reinterpret_cast<const char *>(&state), sizeof(state));
}

class Model {
 public:
  explicit Model(bool is_locked) : is_locked_(is_locked) {
  }

  // Explores everything; returns the first thing that went wrong, or "".
  std::string Explore() {
    std::vector<State> stack = {State{}};
    std::unordered_set<std::string> seen = {Key(stack[0])};
    while (!stack.empty()) {
      State state = stack.back();
      stack.pop_back();
      bool is_stuck = true;
      for (int who = 0; who < 2; who++) {
        for (bool drain : {false, true}) {
          State next = state;
          bool moved = drain ? Drain(&next, who) : Step(&next, who);
          if (!error_.empty()) {
            return error_;
          }
          if (moved) {
            is_stuck = false;
            if (seen.insert(Key(next)).second) {
              stack.push_back(next);
            }
          }
        }
      }
      bool is_done = state.side[0].pc == kDone && state.side[1].pc == kDone;
      if (is_stuck && !is_done) {
        return "both sides are stuck: a wakeup was lost";
      }
    }
    states_ = seen.size();
    return "";
  }

  size_t states() const {
    return states_;
  }

 private:
  static uint8_t Load(const State &state, int who, uint8_t word) {
    const Side &side = state.side[who];
    for (int i = side.pending; i-- > 0;) {
      if (side.word[static_cast<size_t>(i)] == word) {
        return side.value[static_cast<size_t>(i)];
      }
    }
    return state.memory[word];
  }

  // False if the buffer is full: something has to drain first.
  static bool Store(State *state, int who, uint8_t word, uint8_t value) {
    Side &side = state->side[who];
    if (side.pending == side.word.size()) {
      return false;
    }
    side.word[side.pending] = word;
    side.value[side.pending] = value;
    side.pending++;
    return true;
  }

  static bool Drain(State *state, int who) {
    Side &side = state->side[who];
    if (side.pending == 0) {
      return false;
    }
    state->memory[side.word[0]] = side.value[0];
    side.pending--;
    for (size_t i = 0; i + 1 < side.word.size(); i++) {
      side.word[i] = i < side.pending ? side.word[i + 1] : 0;
      side.value[i] = i < side.pending ? side.value[i + 1] : 0;
    }
    side.word.back() = 0;
    side.value.back() = 0;
    return true;
  }

  bool IsEnough(int who, const Side &side) {
    return who == 0 ? side.own - side.copy < kCapacity
                    : side.copy - side.own > 0;
  }

  // One instruction of a side; false if it cannot move.
  bool Step(State *state, int who) {
    Side &side = state->side[who];
    const uint8_t other_counter = who == 0 ? kHead : kTail;
    const uint8_t own_counter = who == 0 ? kTail : kHead;
    const uint8_t my_asleep = who == 0 ? kWritableAsleep : kReadableAsleep;
    const uint8_t my_signal = who == 0 ? kWritableSignal : kReadableSignal;
    const uint8_t its_asleep = who == 0 ? kReadableAsleep : kWritableAsleep;
    const uint8_t its_signal = who == 0 ? kReadableSignal : kWritableSignal;
    switch (side.pc) {
      case kCheckCopy:
        side.pc = side.own == kBytes    ? kDone
                  : IsEnough(who, side) ? kTransfer
                                        : kLoadCounter;
        return true;
      case kLoadCounter:
        side.copy = Load(*state, who, other_counter);
        side.pc = IsEnough(who, side) ? kTransfer : kReadSignal;
        return true;
      case kReadSignal:
        side.signal_seen = Load(*state, who, my_signal);
        side.pc = kRaiseAsleep;
        return true;
      case kRaiseAsleep:
        side.pc = kLookAgain;
        if (!is_locked_) {
          return Store(state, who, my_asleep, 1);
        }
        state->memory[my_asleep] = 1;
        return side.pending == 0;
      case kLookAgain:
        side.copy = Load(*state, who, other_counter);
        side.is_enough = IsEnough(who, side);
        side.pc = side.is_enough ? kLowerAsleep : kFutexWait;
        return true;
      case kFutexWait:
        // A system call: it compares and sleeps at once.
        side.pc = Load(*state, who, my_signal) == side.signal_seen
                      ? kSleeping
                      : kLowerAsleep;
        return true;
      case kSleeping:
        return false;
      case kLowerAsleep:
        side.pc = side.is_enough ? kTransfer : kCheckCopy;
        side.is_enough = 0;
        return Store(state, who, my_asleep, 0);
      case kTransfer: {
        auto place = static_cast<uint8_t>(kData0 + side.own % kCapacity);
        if (who == 0) {
          side.pc = kStoreCounter;
          return Store(state, who, place, static_cast<uint8_t>(side.own + 1));
        }
        if (Load(*state, who, place) != side.own + 1) {
          error_ = "the consumer saw a byte that is not its turn's";
        }
        side.pc = kStoreCounter;
        return true;
      }
      case kStoreCounter:
        if (!Store(state, who, own_counter,
                   static_cast<uint8_t>(side.own + 1))) {
          return false;
        }
        side.own++;
        side.pc = kLoadAsleep;
        return true;
      case kLoadAsleep:
        side.pc =
            Load(*state, who, its_asleep) != 0 ? kClearAsleep : kCheckCopy;
        return !is_locked_ || side.pending == 0;
      case kClearAsleep:
        side.pc = kBumpSignal;
        return Store(state, who, its_asleep, 0);
      case kBumpSignal:
        // A read-modify-write empties the buffer.
        if (side.pending != 0) {
          return false;
        }
        state->memory[its_signal]++;
        side.pc = kFutexWake;
        return true;
      case kFutexWake: {
        Side &other = state->side[1 - who];
        if (other.pc == kSleeping) {
          other.pc = kLowerAsleep;
        }
        side.pc = kCheckCopy;
        return true;
      }
      case kDone:
        return false;
    }
    return false;
  }

  bool is_locked_;
  size_t states_ = 0;
  std::string error_;
};

TEST(RingModelTest, NoInterleavingBreaksTheProtocol) {
  Model model(true);
  EXPECT_EQ(model.Explore(), "");
  printf("%zu states\n", model.states());
  EXPECT_GT(model.states(), 10000u);
}

TEST(RingModelTest, WithPlainAccessesAWakeupIsLost) {
  Model model(false);
  EXPECT_EQ(model.Explore(), "both sides are stuck: a wakeup was lost");
}

}  // namespace
