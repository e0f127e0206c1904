// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The protocol of the states (magazine.c), tried in all interleavings.
//
// Two or three threads run small programs on one object. Each step of the model
// is one access to the object's state or to the thread's own magazine; a thread
// is at any step when another one goes on. Every interleaving is run to its
// end, and then the magazines are flushed, in every order. Stores reach memory
// at once: the accesses are to one byte, of which all threads see the same
// order of values (coherence), and whatever else is private to a thread.
//
// What must hold:
// - programs without a mistake are never reported, and the object is never in
//   two hands or in two magazines;
// - if an object is freed twice by threads at once, it is reported, and before
//   it was handed out twice;
// - a thread held up inside a free for so long that the object was handed out
//   again has freed a live object; that may go unreported, but only then.

#include <array>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab_internal.h"

namespace {

enum Step : uint8_t {
  // free, if the thread has the object: F1, F2 and F3 of magazine.c.
  kFreeLoad,   // Dies unless LIVE.
  kFreeStore,  // CACHED t.
  kFreePush,
  // alloc: the object is taken if it is in the magazine, or nothing happens.
  kAllocPop,
  kAllocLoad,  // Dies unless CACHED t.
  kAllocStore,
};

constexpr size_t kMaxThreads = 3;

struct Thread {
  std::vector<Step> program;
  size_t at = 0;
  // Believes that it has the object that was there in the beginning. If more
  // than one thread does, that is the mistake.
  bool has_first = false;
  int num_allocated = 0;    // Times it has the object because it allocated it.
  int slots = 0;            // How often the object is in its magazine.
  bool is_freeing = false;  // Between F1 and F2.
  bool is_popped = false;   // Between pop and store.
};

struct World {
  uint8_t state = SLAB_STATE_LIVE;
  bool is_reported = false;
  bool is_in_two_hands = false;
  // The object was freed by mistake while it was live again.
  bool is_freed_live = false;
  std::array<Thread, kMaxThreads> threads;
  size_t num_threads = 0;
};

uint8_t Cached(size_t thread) {
  return static_cast<uint8_t>(SLAB_STATE_CACHED + SLAB_TAG_MIN + thread);
}

int NumAllocated(const World &world) {
  int count = 0;
  for (const Thread &thread : world.threads) {
    count += thread.num_allocated;
  }
  return count;
}

// The object is taken: whoever looked at it before and stores after that frees
// an object that lives again.
void NoteFreesOfLive(World *world) {
  for (const Thread &other : world->threads) {
    world->is_freed_live |= other.is_freeing;
  }
}

void BeginFree(World *world, size_t index) {
  Thread &thread = world->threads[index];
  if (thread.has_first) {
    thread.has_first = false;
    world->is_freed_live |= NumAllocated(*world) > 0;
  } else if (thread.num_allocated > 0) {
    --thread.num_allocated;
  } else {
    thread.at += 2;  // It has nothing to free.
    return;
  }
  thread.is_freeing = true;
  world->is_reported |= world->state != SLAB_STATE_LIVE;
}

void EndAlloc(World *world, size_t index) {
  Thread &thread = world->threads[index];
  thread.is_popped = false;
  ++thread.num_allocated;
  world->state = SLAB_STATE_LIVE;
  world->is_in_two_hands |= NumAllocated(*world) > 1;
  NoteFreesOfLive(world);
}

// Runs the next step of a thread.
void Run(World *world, size_t index) {
  Thread &thread = world->threads[index];
  switch (thread.program[thread.at++]) {
    case kFreeLoad:
      BeginFree(world, index);
      break;
    case kFreeStore:
      world->state = Cached(index);
      thread.is_freeing = false;
      break;
    case kFreePush:
      ++thread.slots;
      break;
    case kAllocPop:
      thread.is_popped = thread.slots > 0;
      thread.slots -= thread.is_popped;
      break;
    case kAllocLoad:
      if (thread.is_popped) {
        world->is_reported |= world->state != Cached(index);
        NoteFreesOfLive(world);
      }
      break;
    case kAllocStore:
      if (thread.is_popped) {
        EndAlloc(world, index);
      }
      break;
  }
}

// What a test says of a world at its end.
using Verdict = void (*)(const World &world);

// Empties the magazines in every order; each object is expected to be CACHED by
// the magazine it is in, and becomes FREE.
void FlushAll(World world, Verdict verdict, size_t *num_worlds) {
  bool is_flushed = true;
  for (size_t i = 0; i < world.num_threads && !world.is_reported; ++i) {
    if (world.threads[i].slots > 0) {
      is_flushed = false;
      World next = world;
      --next.threads[i].slots;
      next.is_reported |= next.state != Cached(i);
      next.state = SLAB_STATE_FREE;
      FlushAll(next, verdict, num_worlds);
    }
  }
  if (is_flushed) {
    ++*num_worlds;
    verdict(world);
  }
}

void RunAll(const World &world, Verdict verdict, size_t *num_worlds) {
  bool is_over = true;
  for (size_t i = 0; i < world.num_threads && !world.is_reported; ++i) {
    if (world.threads[i].at < world.threads[i].program.size()) {
      is_over = false;
      World next = world;
      Run(&next, i);
      RunAll(next, verdict, num_worlds);
    }
  }
  if (is_over) {
    FlushAll(world, verdict, num_worlds);
  }
}

const std::vector<Step> kFree = {kFreeLoad, kFreeStore, kFreePush};
const std::vector<Step> kAlloc = {kAllocPop, kAllocLoad, kAllocStore};

std::vector<Step> Join(const std::vector<std::vector<Step>> &parts) {
  std::vector<Step> program;
  for (const std::vector<Step> &part : parts) {
    program.insert(program.end(), part.begin(), part.end());
  }
  return program;
}

size_t Try(const std::vector<std::vector<Step>> &programs, Verdict verdict) {
  World world;
  world.num_threads = programs.size();
  for (size_t i = 0; i < programs.size(); ++i) {
    world.threads[i].program = programs[i];
    world.threads[i].has_first = programs[i].front() == kFreeLoad;
  }
  size_t num_worlds = 0;
  RunAll(world, verdict, &num_worlds);
  return num_worlds;
}

void ExpectRight(const World &world) {
  ASSERT_FALSE(world.is_reported);
  ASSERT_FALSE(world.is_in_two_hands);
}

void ExpectReported(const World &world) {
  // Or it was a free of an object that lives again.
  ASSERT_TRUE(world.is_reported || world.is_freed_live);
  ASSERT_TRUE(!world.is_in_two_hands || world.is_freed_live);
}

TEST(StateModelTest, OneThreadIsNeverReported) {
  EXPECT_EQ(Try({Join({kFree, kAlloc, kFree, kAlloc, kFree})}, ExpectRight),
            1u);
}

TEST(StateModelTest, OthersAllocsDoNotDisturbAFree) {
  // The others' magazines do not have the object.
  EXPECT_GT(Try({Join({kFree, kAlloc, kFree}), kAlloc, kAlloc}, ExpectRight),
            100u);
}

TEST(StateModelTest, TwoFreesAtOnceAreReported) {
  EXPECT_GT(Try({kFree, kFree}, ExpectReported), 10u);
}

TEST(StateModelTest, ThreeFreesAtOnceAreReported) {
  EXPECT_GT(Try({kFree, kFree, kFree}, ExpectReported), 100u);
}

TEST(StateModelTest, TwoFreesAndAllocsAreReported) {
  EXPECT_GT(Try({Join({kFree, kAlloc}), Join({kFree, kAlloc})}, ExpectReported),
            100u);
  EXPECT_GT(Try({Join({kFree, kAlloc}), kFree, kAlloc}, ExpectReported), 100u);
}

// The object is used on: what was handed out is freed again, rightly.
TEST(StateModelTest, TwoFreesAreReportedThoughUseGoesOn) {
  EXPECT_GT(Try({Join({kFree, kAlloc, kFree, kAlloc}), Join({kFree, kAlloc})},
                ExpectReported),
            1000u);
}

// That the model notices what it looks for: in two hands it is.
TEST(StateModelTest, AllocsThatDoNotLookHandOutTwice) {
  static size_t num_missed;
  num_missed = 0;
  const std::vector<Step> kAllocBlindly = {kAllocPop, kAllocStore};
  Try({Join({kFree, kAllocBlindly}), Join({kFree, kAllocBlindly})},
      [](const World &world) {
        num_missed += world.is_in_two_hands && !world.is_freed_live;
      });
  EXPECT_GT(num_missed, 0u);
}

}  // namespace
