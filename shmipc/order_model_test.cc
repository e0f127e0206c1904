// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The orders of memory that the heap and the locks rely on (those of channels:
// port_fence_model_test.cc): each pair of protocols in which both sides store
// and then look at what the other stores, in every interleaving of every order
// that C11 allows their accesses to have. Each is shown to fail with an order
// that is weaker, as no test on x86 does.
//
// Of C11 this has what these protocols need: an access moves before an earlier
// one of its thread unless they are of one location, the earlier is an acquire,
// the later a release, or both are sequentially consistent. A read-modify-
// write is a load and a store between which nobody else stores there, but
// others' accesses of its thread may be. Accesses take effect one after the
// other, for all threads.

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace {

enum Order {
  kRelaxed,
  kAcquire,
  kRelease,
  kSeqCst
};

enum Kind {
  kStore,
  kLoad,
  kReplace  // The store of a read-modify-write, whose load is before it.
};

struct Access {
  const char *name;
  Kind kind;
  int location;
  int value;  // That is stored.
  Order order;
};

using Program = std::vector<Access>;
// What each access has read, by thread and place in the program.
using Seen = std::array<std::vector<int>, 2>;

bool Acquires(const Access &access) {
  return access.kind == kLoad &&
         (access.order == kAcquire || access.order == kSeqCst);
}

bool Releases(const Access &access) {
  return access.kind != kLoad &&
         (access.order == kRelease || access.order == kSeqCst);
}

bool MayPass(const Access &later, const Access &earlier) {
  return later.location != earlier.location && !Acquires(earlier) &&
         !Releases(later) &&
         !(later.order == kSeqCst && earlier.order == kSeqCst);
}

constexpr int kLocations = 3;

struct State {
  std::array<int, kLocations> memory;
  std::array<unsigned int, 2> done;  // A bit for each access.
  Seen seen;
};

// Calls `check` with the end of every execution; counts those that it refuses.
size_t Explore(const std::array<Program, 2> &programs, const State &state,
               const std::function<bool(const State &)> &check) {
  size_t wrong = 0;
  bool is_end = true;
  for (size_t t = 0; t < 2; t++) {
    const Program &program = programs[t];
    for (size_t i = 0; i < program.size(); i++) {
      bool may = (state.done[t] >> i & 1) == 0;
      is_end &= !may;
      for (size_t j = 0; j < i; j++) {
        may &= (state.done[t] >> j & 1) != 0 || MayPass(program[i], program[j]);
      }
      if (!may) {
        continue;
      }
      State next = state;
      const Access &access = program[i];
      auto location = static_cast<size_t>(access.location);
      next.done[t] |= 1u << i;
      if (access.kind == kReplace &&
          next.memory[location] != next.seen[t][i - 1]) {
        continue;  // It has to be done again: another execution.
      }
      next.seen[t][i] = next.memory[location];
      if (access.kind != kLoad) {
        next.memory[location] = access.value;
      }
      wrong += Explore(programs, next, check);
    }
  }
  return is_end ? (check(state) ? 0 : 1) : wrong;
}

size_t CountWrong(const std::array<Program, 2> &programs,
                  const std::array<int, kLocations> &memory,
                  const std::function<bool(const State &)> &check) {
  State state = {memory, {0, 0}, {}};
  for (size_t t = 0; t < 2; t++) {
    state.seen[t].assign(programs[t].size(), -1);
  }
  return Explore(programs, state, check);
}

// None wrong as it is; some with each of `needed` (thread, place) one step
// weaker.
void ExpectNeeded(std::array<Program, 2> programs,
                  const std::array<int, kLocations> &memory,
                  const std::vector<std::array<size_t, 2>> &needed,
                  const std::function<bool(const State &)> &check) {
  EXPECT_EQ(CountWrong(programs, memory, check), 0u);
  for (const std::array<size_t, 2> &which : needed) {
    std::array<Program, 2> weaker = programs;
    Access &access = weaker[which[0]][which[1]];
    bool was_seq_cst = access.order == kSeqCst;
    access.order = !was_seq_cst           ? kRelaxed
                   : access.kind == kLoad ? kAcquire
                                          : kRelease;
    EXPECT_GT(CountWrong(weaker, memory, check), 0u)
        << access.name << " may be weaker";
  }
}

// block_cache.c, shmipc_page_note_freed and scan_others: whoever frees a block
// changes its word and looks at the note; the owner clears the note and looks
// at the words. Either the note is set in the end, or the owner saw the word.
TEST(OrderModelTest, AFreedBlockIsSeenOrNoted) {
  enum {
    kWord,
    kNote
  };
  // Whoever finds no note stores one, after that and so after the owner's.
  auto check = [](const State &state) {
    bool is_noted = state.seen[0][2] == 0;
    bool owner_saw_it = state.seen[1][1] == 0;
    return owner_saw_it || is_noted;
  };
  ExpectNeeded({Program{{"word", kLoad, kWord, 0, kSeqCst},
                        {"change of the word", kReplace, kWord, 0, kSeqCst},
                        {"look at the note", kLoad, kNote, 0, kSeqCst}},
                Program{{"clearing the note", kStore, kNote, 0, kSeqCst},
                        {"look at the word", kLoad, kWord, 0, kSeqCst}}},
               // Live, and noted before.
               {7, 1, 0}, {{0, 1}, {0, 2}, {1, 0}, {1, 1}}, check);
}

// block_cache.c, empty_page, and shared_heap.c: the owner says that the page
// is going and looks for a reclaimer; the reclaimer says that it is at it and
// looks at the heads. Never do both go on.
TEST(OrderModelTest, APageDoesNotGoWhileItIsReclaimed) {
  enum {
    kHead,
    kReclaimer
  };
  auto check = [](const State &state) {
    bool goes = state.seen[0][1] == 0;
    bool reads_words = state.seen[1][1] == 1;
    return !(goes && reads_words);
  };
  ExpectNeeded(
      {Program{{"head FREEING", kStore, kHead, 2, kSeqCst},
               {"look for a reclaimer", kLoad, kReclaimer, 0, kSeqCst}},
       Program{{"reclaimer", kStore, kReclaimer, 1, kSeqCst},
               {"look at the head", kLoad, kHead, 0, kSeqCst}}},
      {1, 0, 0}, {{0, 0}, {0, 1}, {1, 0}, {1, 1}}, check);
}

// rwlock.c: a reader notes its lock and looks at the writer's word, a writer
// the other way round.
TEST(OrderModelTest, AReaderOrAWriterSeesTheOther) {
  enum {
    kNoted,
    kWriter
  };
  auto check = [](const State &state) {
    return state.seen[0][1] == 1 || state.seen[1][2] == 1;
  };
  ExpectNeeded({Program{{"note of the reader", kStore, kNoted, 1, kSeqCst},
                        {"look for a writer", kLoad, kWriter, 0, kSeqCst}},
                Program{{"lock", kLoad, kWriter, 0, kSeqCst},
                        {"word of the writer", kReplace, kWriter, 1, kSeqCst},
                        {"look for readers", kLoad, kNoted, 0, kSeqCst}}},
               {0, 0, 0}, {{0, 0}, {0, 1}, {1, 1}, {1, 2}}, check);
}

// A block that is freed and taken by another: who writes into it has seen the
// end of what was done with it before.
TEST(OrderModelTest, WhatWasDoneWithABlockComesBeforeItIsFree) {
  enum {
    kContent,
    kWord
  };
  // It reads the block after it has found it free.
  auto check = [](const State &state) {
    return state.seen[1][0] != 0 || state.seen[1][1] == 5;
  };
  ExpectNeeded({Program{{"last store into it", kStore, kContent, 5, kRelaxed},
                        {"word of 0", kStore, kWord, 0, kRelease}},
                Program{{"look at the word", kLoad, kWord, 0, kAcquire},
                        {"look into it", kLoad, kContent, 0, kRelaxed}}},
               {0, 7, 0}, {{0, 1}, {1, 0}}, check);
}

// root.c: a reader takes a name for whole if the state was the same before and
// after it.
TEST(OrderModelTest, AReaderOfARootSeesOneState) {
  enum {
    kState,
    kName
  };
  auto check = [](const State &state) {
    int seen = state.seen[1][0];
    bool is_believed = seen % 2 == 1 && state.seen[1][2] == seen;
    return !is_believed || state.seen[1][1] == (seen == 1 ? 10 : 20);
  };
  ExpectNeeded({Program{{"state: none", kStore, kState, 2, kRelease},
                        {"next name", kStore, kName, 20, kRelease},
                        {"state: there", kStore, kState, 3, kRelease}},
                Program{{"first look at the state", kLoad, kState, 0, kAcquire},
                        {"name", kLoad, kName, 0, kAcquire},
                        {"second look", kLoad, kState, 0, kRelaxed}}},
               {1, 10, 0}, {{0, 1}, {0, 2}, {1, 0}, {1, 1}}, check);
}

}  // namespace
