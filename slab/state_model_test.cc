// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The protocol of the states (magazine.c), tried in all interleavings.
//
// Two or three threads run small programs on one object. Each step of the model
// is one access to the object's state or to the thread's own magazine; a thread
// is at any step when another one goes on. Magazines are flushed to the depot
// or to the slab and filled from there on the way; what a thread does under a
// lock is one step. Every interleaving is run to its end, and then the
// magazines are flushed, in every order, and the cache is destroyed. Stores
// reach memory at once: the accesses are to one byte, of which all threads see
// the same order of values (coherence), and whatever else is private to a
// thread.
//
// What must hold:
// - programs without a mistake are never reported, and the object is never in
//   two hands or in two magazines;
// - if an object is freed twice by threads at once, it is reported, and before
//   it was handed out twice;
// - the slab is not given back while one of its objects is live;
// - a thread held up inside a free (or the flush or refill of an object that
//   was freed twice) for so long that the object was handed out again, or its
//   slab given back, has freed a live object; that may go unreported, but
//   nothing else, not even a slot that outlives the slab.

#include <array>
#include <cstdint>
#include <string>
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
  // flush, if the magazine has the object. To the depot, or to the slab if the
  // depot has no room after all:
  kFlushLoad,   // Dies unless CACHED t.
  kFlushStore,  // SHARED.
  kFlushToDepot,
  kFlushToSlab,  // FREE, and counted.
  kFlushFree,    // The same, after the load at once.
  // refill: of one object, if the depot or the slab has it.
  kDepotPop,
  kDepotLoad,   // Dies unless SHARED.
  kDepotStore,  // CACHED t.
  kRefillPush,
  kSlabTake,  // Dies if the count says more than the state; CACHED t.
  // The slab is given back if all of its objects are free by its count.
  kGiveBack,
};

constexpr size_t kMaxThreads = 3;

struct Thread {
  std::vector<Step> program;
  size_t at = 0;
  // Believes that it has the object that was there in the beginning. If more
  // than one thread does, that is the mistake.
  bool has_first = false;
  int num_allocated = 0;  // Times it has the object because it allocated it.
  int slots = 0;          // How often the object is in its magazine.
  bool is_hot = false;    // It is the object that it allocated last.
  bool is_hot_free = false;
  // Between the look at the state and the store: of a free (F1, F2), of a
  // flush, or of a refill from the depot.
  bool is_deciding = false;
  bool is_pushing = false;   // Between F2 and F3.
  bool is_popped = false;    // Between pop and store.
  bool is_flushing = false;  // Between load and the last step of a flush.
  bool is_filling = false;   // Between pop or take and push of a refill.
};

struct World {
  uint8_t state = SLAB_STATE_LIVE;
  bool is_reported = false;
  bool is_in_two_hands = false;
  // The object was freed by mistake while it was live again.
  bool is_freed_live = false;
  int num_in_depot = 0;
  // As the slab counts it: once, if all is well.
  int num_free = 0;
  // The slab has one more object, which is free, or not.
  bool is_other_free = false;
  bool is_given_back = false;
  // The slab came back after that, and the object was taken as a new one.
  bool is_new = false;
  // It was given back with a live object,
  bool is_lost = false;
  // or while a magazine or the depot had the object.
  bool is_dangling = false;
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
    world->is_freed_live |= other.is_deciding;
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
  thread.is_deciding = true;
  world->is_reported |= world->state != SLAB_STATE_LIVE;
}

// Puts the object where the next alloc takes it.
void Push(Thread *thread) {
  if (thread->is_hot && !thread->is_hot_free) {
    thread->is_hot_free = true;
  } else {
    ++thread->slots;
  }
}

// Takes the object out of the magazine; false if it is not there.
bool Pop(Thread *thread) {
  if (thread->is_hot_free) {
    thread->is_hot_free = false;
    return true;
  }
  thread->is_hot = thread->is_hot || thread->slots > 0;
  return thread->slots > 0 && thread->slots-- > 0;
}

void EndAlloc(World *world, size_t index) {
  Thread &thread = world->threads[index];
  thread.is_popped = false;
  ++thread.num_allocated;
  world->state = SLAB_STATE_LIVE;
  world->is_in_two_hands |= NumAllocated(*world) > 1;
  NoteFreesOfLive(world);
}

// A step of a flush.
void Flush(World *world, size_t index, Step step) {
  Thread &thread = world->threads[index];
  if (step == kFlushLoad) {
    thread.is_flushing = Pop(&thread);
    thread.is_deciding = thread.is_flushing;
    thread.is_hot = false;
    world->is_reported |= thread.is_flushing && world->state != Cached(index);
    return;
  }
  if (!thread.is_flushing) {
    return;
  }
  if (step == kFlushStore) {
    thread.is_deciding = false;
    world->state = SLAB_STATE_SHARED;
    return;
  }
  thread.is_flushing = false;
  thread.is_deciding = false;
  if (step == kFlushToDepot) {
    ++world->num_in_depot;
  } else {
    world->is_reported |=
        step == kFlushToSlab && world->state != SLAB_STATE_SHARED;
    world->state = SLAB_STATE_FREE;
    ++world->num_free;
  }
}

// A step of a refill.
void Refill(World *world, size_t index, Step step) {
  Thread &thread = world->threads[index];
  if (step == kDepotPop) {
    thread.is_filling = world->num_in_depot > 0;
    world->num_in_depot -= thread.is_filling;
  } else if (step == kSlabTake && world->num_free > 0) {
    thread.is_filling = true;
    --world->num_free;
    world->is_reported |= world->state != SLAB_STATE_FREE;
    world->state = Cached(index);
  } else if (step == kSlabTake && world->is_given_back && !world->is_new) {
    thread.is_filling = true;
    world->is_new = true;
    world->is_reported |= world->state != SLAB_STATE_UNUSED;
    world->state = Cached(index);
  } else if (step == kDepotLoad) {
    thread.is_deciding = thread.is_filling;
    world->is_reported |=
        thread.is_filling && world->state != SLAB_STATE_SHARED;
  } else if (step == kDepotStore && thread.is_filling) {
    thread.is_deciding = false;
    world->state = Cached(index);
  } else if (step == kRefillPush && thread.is_filling) {
    thread.is_filling = false;
    ++thread.slots;
  }
}

// A magazine or the depot has the object, or is about to.
bool IsCached(const World &world) {
  bool is_cached = world.num_in_depot > 0;
  for (const Thread &thread : world.threads) {
    is_cached |= thread.slots > 0 || thread.is_hot_free || thread.is_pushing ||
                 thread.is_popped || thread.is_flushing || thread.is_filling;
  }
  return is_cached;
}

// Does the slab look before it goes?
bool looks_before_it_goes = true;

void GiveBack(World *world) {
  const int num_free = world->num_free + (world->is_other_free ? 1 : 0);
  if (world->is_given_back || num_free != 2) {
    return;
  }
  const int num_states = (world->state == SLAB_STATE_FREE ? 1 : 0) +
                         (world->is_other_free ? 1 : 0);
  if (looks_before_it_goes && num_states != num_free) {
    world->is_reported = true;
    return;
  }
  world->is_given_back = true;
  world->state = SLAB_STATE_UNUSED;
  world->num_free = 0;
  world->is_lost = !world->is_other_free || NumAllocated(*world) > 0;
  world->is_dangling = IsCached(*world);
  // Frees that are held up go to what is there next.
  NoteFreesOfLive(world);
}

// Runs the next step of a thread.
void Run(World *world, size_t index) {
  Thread &thread = world->threads[index];
  const Step step = thread.program[thread.at++];
  switch (step) {
    case kFreeLoad:
      BeginFree(world, index);
      break;
    case kFreeStore:
      world->state = Cached(index);
      thread.is_deciding = false;
      thread.is_pushing = true;
      break;
    case kFreePush:
      thread.is_pushing = false;
      Push(&thread);
      break;
    case kAllocPop:
      thread.is_popped = Pop(&thread);
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
    case kFlushLoad:
    case kFlushStore:
    case kFlushToDepot:
    case kFlushToSlab:
    case kFlushFree:
      Flush(world, index, step);
      break;
    case kDepotPop:
    case kDepotLoad:
    case kDepotStore:
    case kRefillPush:
    case kSlabTake:
      Refill(world, index, step);
      break;
    case kGiveBack:
      GiveBack(world);
      break;
  }
}

// What a test says of a world at its end.
using Verdict = void (*)(const World &world);

// The end of the cache, whose magazines are empty: the depot becomes so, and
// the slab has as many free objects as it counts.
void Destroy(World *world) {
  for (; world->num_in_depot > 0; --world->num_in_depot) {
    world->is_reported |= world->state != SLAB_STATE_SHARED;
    world->state = SLAB_STATE_FREE;
    ++world->num_free;
  }
  world->is_reported |=
      (!world->is_given_back || world->is_new) &&
      world->num_free != (world->state == SLAB_STATE_FREE ? 1 : 0);
}

// Empties the magazines in every order; each object is expected to be CACHED by
// the magazine it is in, and becomes FREE.
void FlushAll(World world, Verdict verdict, size_t *num_worlds) {
  bool is_flushed = true;
  for (size_t i = 0; i < world.num_threads && !world.is_reported; ++i) {
    if (world.threads[i].slots > 0 || world.threads[i].is_hot_free) {
      is_flushed = false;
      World next = world;
      Flush(&next, i, kFlushLoad);
      Flush(&next, i, kFlushStore);
      Flush(&next, i, kFlushToSlab);
      FlushAll(next, verdict, num_worlds);
    }
  }
  if (is_flushed) {
    if (!world.is_reported) {
      Destroy(&world);
    }
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
const std::vector<Step> kToDepot = {kFlushLoad, kFlushStore, kFlushToDepot};
const std::vector<Step> kToSlab = {kFlushLoad, kFlushStore, kFlushToSlab};
const std::vector<Step> kToSlabAtOnce = {kFlushLoad, kFlushFree};
const std::vector<Step> kFromDepot = {kDepotPop, kDepotLoad, kDepotStore,
                                      kRefillPush};
const std::vector<Step> kFromSlab = {kSlabTake, kRefillPush};
const std::vector<Step> kReap = {kGiveBack};

std::vector<Step> Join(const std::vector<std::vector<Step>> &parts) {
  std::vector<Step> program;
  for (const std::vector<Step> &part : parts) {
    program.insert(program.end(), part.begin(), part.end());
  }
  return program;
}

// What is so in the beginning, beyond the live object.
struct Start {
  bool is_hot = false;         // The first thread allocated it last.
  bool is_other_free = false;  // The slab's other object.
};

size_t Try(const std::vector<std::vector<Step>> &programs, Verdict verdict,
           Start start = {}) {
  World world;
  world.threads[0].is_hot = start.is_hot;
  world.is_other_free = start.is_other_free;
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
  ASSERT_FALSE(world.is_lost);
  ASSERT_FALSE(world.is_dangling);
}

void ExpectReported(const World &world) {
  // Or it was a free of an object that lives again.
  const bool is_exempt = world.is_freed_live;
  ASSERT_TRUE(world.is_reported || is_exempt);
  ASSERT_TRUE(!world.is_in_two_hands || is_exempt);
  ASSERT_TRUE(!world.is_lost || is_exempt);
}

// Calls `use` with each kind of start.
template <typename Use>
void ForEachStart(Use use) {
  for (const bool is_hot : {false, true}) {
    for (const bool is_other_free : {false, true}) {
      SCOPED_TRACE(std::string("hot: ") + (is_hot ? "yes" : "no") +
                   ", other free: " + (is_other_free ? "yes" : "no"));
      use(Start{is_hot, is_other_free});
    }
  }
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

// A thread flushes while others are inside of their calls, and another one gets
// the object from the depot or the slab.
TEST(StateModelTest, FlushesAndRefillsAreNeverReported) {
  ForEachStart([](Start start) {
    EXPECT_GT(Try({Join({kFree, kToDepot, kFromDepot, kAlloc}),
                   Join({kFromDepot, kAlloc})},
                  ExpectRight, start),
              1000u);
    EXPECT_GT(Try({Join({kFree, kToSlab, kFromSlab, kAlloc}),
                   Join({kFromSlab, kAlloc}), kReap},
                  ExpectRight, start),
              1000u);
    EXPECT_GT(Try({Join({kFree, kToSlabAtOnce, kFromSlab, kAlloc}),
                   Join({kFromSlab, kAlloc}), kReap},
                  ExpectRight, start),
              1000u);
  });
}

TEST(StateModelTest, TwoFreesAndFlushesAreReported) {
  ForEachStart([](Start start) {
    for (const std::vector<Step> &flush : {kToDepot, kToSlab, kToSlabAtOnce}) {
      EXPECT_GT(Try({Join({kFree, flush, kReap}), Join({kFree, flush, kReap})},
                    ExpectReported, start),
                100u);
      EXPECT_GT(Try({Join({kFree, flush}), Join({kFree, kAlloc, kFree})},
                    ExpectReported, start),
                100u);
    }
    for (const std::vector<Step> &flush : {kToSlab, kToSlabAtOnce}) {
      EXPECT_GT(Try({Join({kFree, flush}), Join({kFree, kToDepot}), kReap},
                    ExpectReported, start),
                1000u);
    }
  });
}

TEST(StateModelTest, TwoFreesFlushesAndRefillsAreReported) {
  ForEachStart([](Start start) {
    EXPECT_GT(Try({Join({kFree, kToDepot}), kFree, Join({kFromDepot, kAlloc})},
                  ExpectReported, start),
              1000u);
    for (const std::vector<Step> &flush : {kToSlab, kToSlabAtOnce}) {
      EXPECT_GT(
          Try({Join({kFree, flush}), kFree, Join({kFromSlab, kAlloc, kReap})},
              ExpectReported, start),
          1000u);
    }
  });
}

TEST(StateModelTest, SlabsThatDoNotLookAreGivenBackWithALiveObject) {
  static size_t num_lost;
  num_lost = 0;
  looks_before_it_goes = false;
  Try({Join({kFree, kToSlab}), Join({kFree, kToSlab}), kReap},
      [](const World &world) { num_lost += world.is_lost; });
  looks_before_it_goes = true;
  EXPECT_GT(num_lost, 0u);
}

// The slab goes back while a magazine has the object as well, and comes back.
TEST(StateModelTest, SlotsThatOutliveTheSlabAreReported) {
  static size_t num_dangling;
  num_dangling = 0;
  ForEachStart([](Start start) {
    Try(
        {Join({kFree, kToSlab, kReap, kFromSlab, kAlloc, kFree}),
         Join({kFree, kAlloc})},
        [](const World &world) {
          num_dangling += world.is_dangling;
          ExpectReported(world);
        },
        start);
    Try({Join({kFree, kToSlab, kReap}),
         Join({kFree, kFromSlab, kAlloc, kFree, kAlloc})},
        ExpectReported, start);
  });
  EXPECT_GT(num_dangling, 0u);
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
