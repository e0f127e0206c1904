// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Explores every interleaving of a futex protocol of a few threads: the steps
// of the sources, one memory access or system call each. Memory is sequentially
// consistent, as all accesses that matter are read-modify-write or compared by
// the kernel, but for protocols that put stores into a buffer (`pending`) and
// take them out at any later step.

#ifndef MY_ALLOC_SHMIPC_FUTEX_MODEL_H_
#define MY_ALLOC_SHMIPC_FUTEX_MODEL_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

namespace futex_model {

constexpr size_t kMax = 5;

// The words; what they mean depends on the protocol.
struct Thread {
  uint8_t pc;
  uint8_t seen;
  uint8_t waiters;    // What it adds when it takes the word.
  uint8_t is_asleep;  // In the kernel's queue.
  uint8_t times_left;
  uint8_t is_dead;
  uint8_t may_give_up;
  uint8_t told;     // Got -EOWNERDEAD and has not repaired.
  uint8_t pending;  // Stores that only it sees.
  uint8_t fence;    // As seen.
  uint8_t has_asked;
  uint8_t num_quiet;
  uint8_t next;  // Whose barrier comes.
};

struct State {
  uint8_t word;
  uint8_t data;
  uint8_t inside;
  uint8_t deaths_left;
  uint8_t died_inside;
  uint8_t fence;
  std::array<Thread, kMax> thread;
};

inline std::string Key(const State &state) {
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
  // So many of the first threads do the same: which of them is where does not
  // matter.
  virtual size_t NumAlike() const {
    return 0;
  }

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
      for (State &one : next) {
        std::sort(one.thread.begin(),
                  one.thread.begin() + static_cast<ptrdiff_t>(NumAlike()),
                  [](const Thread &a, const Thread &b) {
                    return memcmp(&a, &b, sizeof(a)) < 0;
                  });
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

}  // namespace futex_model

#endif  // MY_ALLOC_SHMIPC_FUTEX_MODEL_H_
