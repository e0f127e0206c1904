// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The protocol by which a span's owner learns of frees by other threads (F1 to
// F4, O1 to O3 in thread_heap.c), as a model small enough to try every
// interleaving of its atomic steps. All of them are seq_cst in the code, so
// that interleavings are all there is.
//
// Checked for two threads that free one block each, an owner that looks twice
// meanwhile; in a second form, a thread that adopts the span meanwhile; in a
// third, the owner's heap_trim, which counts each span unasked: whatever
// happened, the owner's next look finds every block that is free. Protocols
// with two steps exchanged or one left out must fail, or the model could not
// tell.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace {

constexpr int kBlocks = 2;
constexpr int kOwner = 0;
constexpr int kOrphanage = 1;

enum BlockState : uint8_t {
  kLive,
  kFreed,
  kFound
};

// What the threads share.
struct Shared {
  std::array<uint8_t, kBlocks> blocks = {};
  uint8_t hint = 0;                       // The span's.
  std::array<uint8_t, 2> class_bit = {};  // Of the owner, the orphanage.
  uint8_t owner = kOwner;                 // Of the span.
};

struct Thread {
  uint8_t step = 0;
  uint8_t seen = 0;  // A local variable.
};

constexpr uint8_t kDone = 255;

// Runs one atomic step of a thread.
using Program = std::function<void(Shared *, Thread *)>;

// One instruction of a program: returns the number of the next, or kDone.
using Instruction = std::function<uint8_t(Shared *, Thread *)>;

Program ProgramOf(std::vector<Instruction> instructions) {
  return [instructions](Shared *shared, Thread *thread) {
    thread->step = instructions[thread->step](shared, thread);
    if (thread->step == instructions.size()) {
      thread->step = kDone;
    }
  };
}

// How a protocol may be wrong.
enum class Mutation {
  kNone,
  kHintLast,          // F3 after F4.
  kHintBeforeFree,    // F2 to F4 before F1.
  kNoClassBit,        // F4 left out.
  kCountBeforeClear,  // O3 before O2.
  kKeepHint,          // O2 does not clear.
  kClearBitLast,      // O1 after O3.
  kAdoptAfterCount,   // The adopted span's owner is set last.
  kAdoptWithoutHint,  // Adoption does not clear the hint.
  kTrimClearsBit,     // heap_trim does O1 as well, last.
};

Program Free(int block, Mutation mutation) {
  const Instruction free = [block](Shared *shared, Thread *thread) {
    shared->blocks[static_cast<size_t>(block)] = kFreed;
    return static_cast<uint8_t>(thread->step + 1);
  };
  const Instruction see_hint = [](Shared *shared, Thread *thread) {
    return shared->hint != 0 ? kDone : static_cast<uint8_t>(thread->step + 1);
  };
  const Instruction set_hint = [](Shared *shared, Thread *thread) {
    shared->hint = 1;
    return static_cast<uint8_t>(thread->step + 1);
  };
  const Instruction see_owner = [](Shared *shared, Thread *thread) {
    thread->seen = shared->owner;
    return static_cast<uint8_t>(thread->step + 1);
  };
  const Instruction set_class_bit = [](Shared *shared, Thread *thread) {
    shared->class_bit[thread->seen] = 1;
    return static_cast<uint8_t>(thread->step + 1);
  };
  switch (mutation) {
    case Mutation::kHintLast:
      return ProgramOf({free, see_hint, see_owner, set_class_bit, set_hint});
    case Mutation::kHintBeforeFree:
      return ProgramOf({[](Shared *shared, Thread *thread) -> uint8_t {
                          // Frees at once if others gave the hint.
                          if (shared->hint != 0) {
                            return 4;
                          }
                          return static_cast<uint8_t>(thread->step + 1);
                        },
                        set_hint, see_owner, set_class_bit, free});
    case Mutation::kNoClassBit:
      return ProgramOf({free, see_hint, set_hint});
    default:
      return ProgramOf({free, see_hint, set_hint, see_owner, set_class_bit});
  }
}

// Looks at one block as the owner's count does.
Instruction Count(int block) {
  return [block](Shared *shared, Thread *thread) {
    uint8_t &state = shared->blocks[static_cast<size_t>(block)];
    if (state == kFreed) {
      state = kFound;
    }
    return static_cast<uint8_t>(thread->step + 1);
  };
}

Instruction ClearHint(bool really) {
  return [really](Shared *shared, Thread *thread) {
    if (really) {
      shared->hint = 0;
    }
    return static_cast<uint8_t>(thread->step + 1);
  };
}

Instruction ClearClassBit() {
  return [](Shared *shared, Thread *thread) {
    shared->class_bit[kOwner] = 0;
    return static_cast<uint8_t>(thread->step + 1);
  };
}

// The owner, out of blocks, looks `times` times.
Program Look(int times, Mutation mutation) {
  std::vector<Instruction> program;
  for (int i = 0; i < times; ++i) {
    const auto start = static_cast<uint8_t>(program.size());
    const auto end = static_cast<uint8_t>(start + 6);
    const bool clears_last = mutation == Mutation::kClearBitLast;
    const Instruction clear_bit = ClearClassBit();
    const Instruction pass = [](Shared *, Thread *thread) {
      return static_cast<uint8_t>(thread->step + 1);
    };
    // O1, and whether the span is its own.
    program.push_back([end](Shared *shared, Thread *thread) {
      return shared->class_bit[kOwner] == 0 || shared->owner != kOwner
                 ? end
                 : static_cast<uint8_t>(thread->step + 1);
    });
    program.push_back(clears_last ? pass : clear_bit);
    // O2
    const Instruction clear_hint = [end, mutation](Shared *shared,
                                                   Thread *thread) {
      if (shared->hint == 0) {
        return end;
      }
      if (mutation != Mutation::kKeepHint) {
        shared->hint = 0;
      }
      return static_cast<uint8_t>(thread->step + 1);
    };
    // O3
    if (mutation == Mutation::kCountBeforeClear) {
      program.push_back(Count(0));
      program.push_back(Count(1));
      program.push_back(clear_hint);
    } else {
      program.push_back(clear_hint);
      program.push_back(Count(0));
      program.push_back(Count(1));
    }
    program.push_back(clears_last ? clear_bit : pass);
  }
  return ProgramOf(program);
}

// The owner adopts the span from the orphanage.
Program Adopt(Mutation mutation) {
  const Instruction set_owner = [](Shared *shared, Thread *thread) {
    shared->owner = kOwner;
    return static_cast<uint8_t>(thread->step + 1);
  };
  const bool clears = mutation != Mutation::kAdoptWithoutHint;
  if (mutation == Mutation::kAdoptAfterCount) {
    return ProgramOf({ClearHint(clears), Count(0), Count(1), set_owner});
  }
  return ProgramOf({set_owner, ClearHint(clears), Count(0), Count(1)});
}

// The owner trims its heap: it counts without a look at the class's bit.
Program Trim(Mutation mutation) {
  if (mutation == Mutation::kCountBeforeClear) {
    return ProgramOf({Count(0), Count(1), ClearHint(true)});
  }
  if (mutation == Mutation::kTrimClearsBit) {
    return ProgramOf({ClearHint(true), Count(0), Count(1), ClearClassBit()});
  }
  return ProgramOf({ClearHint(true), Count(0), Count(1)});
}

// Tries every interleaving of the programs; returns how many ended with a block
// that is free and that the owner's next look does not find.
class Explorer {
 public:
  explicit Explorer(std::vector<Program> programs)
      : programs_(std::move(programs)), threads_(programs_.size()) {
  }

  size_t CountLost(const Shared &start) {
    Visit(start, threads_);
    return lost_;
  }

  size_t states() const {
    return seen_.size();
  }

 private:
  using Key = std::vector<uint8_t>;

  static Key KeyOf(const Shared &shared, const std::vector<Thread> &threads) {
    Key key(shared.blocks.begin(), shared.blocks.end());
    key.push_back(shared.hint);
    key.insert(key.end(), shared.class_bit.begin(), shared.class_bit.end());
    key.push_back(shared.owner);
    for (const Thread &thread : threads) {
      key.push_back(thread.step);
      key.push_back(thread.seen);
    }
    return key;
  }

  static bool IsLost(Shared shared) {
    const Program look = Look(1, Mutation::kNone);
    for (Thread owner; owner.step != kDone;) {
      look(&shared, &owner);
    }
    for (uint8_t state : shared.blocks) {
      if (state == kFreed) {
        return true;
      }
    }
    return false;
  }

  void Visit(const Shared &shared, const std::vector<Thread> &threads) {
    if (!seen_.insert(KeyOf(shared, threads)).second) {
      return;
    }
    bool is_end = true;
    for (size_t i = 0; i < threads.size(); ++i) {
      if (threads[i].step != kDone) {
        is_end = false;
        Shared next_shared = shared;
        std::vector<Thread> next_threads = threads;
        programs_[i](&next_shared, &next_threads[i]);
        Visit(next_shared, next_threads);
      }
    }
    lost_ += is_end && IsLost(shared);
  }

  const std::vector<Program> programs_;
  const std::vector<Thread> threads_;
  std::set<Key> seen_;
  size_t lost_ = 0;
};

size_t LostWhileLooking(Mutation mutation) {
  Explorer explorer({Free(0, mutation), Free(1, mutation), Look(2, mutation)});
  const size_t lost = explorer.CountLost(Shared());
  // Else most of the programs were not run at all.
  EXPECT_GT(explorer.states(), mutation == Mutation::kNone ? 300u : 40u);
  return lost;
}

size_t LostWhileAdopting(Mutation mutation) {
  Explorer explorer({Free(0, mutation), Free(1, mutation), Adopt(mutation)});
  Shared start;
  start.owner = kOrphanage;
  const size_t lost = explorer.CountLost(start);
  return lost;
}

size_t LostWhileTrimming(Mutation mutation) {
  Explorer explorer({Free(0, mutation), Free(1, mutation), Trim(mutation)});
  return explorer.CountLost(Shared());
}

TEST(HintProtocolTest, NoFreeIsLostWhileTheOwnerLooks) {
  EXPECT_EQ(LostWhileLooking(Mutation::kNone), 0u);
}

TEST(HintProtocolTest, NoFreeIsLostWhileTheSpanIsAdopted) {
  EXPECT_EQ(LostWhileAdopting(Mutation::kNone), 0u);
}

TEST(HintProtocolTest, NoFreeIsLostWhileTheOwnerTrims) {
  EXPECT_EQ(LostWhileTrimming(Mutation::kNone), 0u);
}

TEST(HintProtocolTest, OtherOrdersLoseFrees) {
  for (Mutation mutation : {Mutation::kHintLast, Mutation::kHintBeforeFree,
                            Mutation::kNoClassBit, Mutation::kCountBeforeClear,
                            Mutation::kKeepHint, Mutation::kClearBitLast}) {
    EXPECT_GT(LostWhileLooking(mutation), 0u)
        << "mutation " << static_cast<int>(mutation);
  }
  for (Mutation mutation :
       {Mutation::kAdoptAfterCount, Mutation::kAdoptWithoutHint}) {
    EXPECT_GT(LostWhileAdopting(mutation), 0u)
        << "mutation " << static_cast<int>(mutation);
  }
  for (Mutation mutation :
       {Mutation::kCountBeforeClear, Mutation::kTrimClearsBit}) {
    EXPECT_GT(LostWhileTrimming(mutation), 0u)
        << "mutation " << static_cast<int>(mutation);
  }
}

}  // namespace
