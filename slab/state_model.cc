// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "slab/state_model.h"

namespace slab_testing {
namespace {

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

void GiveBack(World *world) {
  const int num_free = world->num_free + (world->is_other_free ? 1 : 0);
  if (world->is_given_back || num_free != 2) {
    return;
  }
  const int num_states = (world->state == SLAB_STATE_FREE ? 1 : 0) +
                         (world->is_other_free ? 1 : 0);
  if (world->looks_before_it_goes && num_states != num_free) {
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
  const Step step = (*thread.program)[thread.at++];
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
    if (world.threads[i].at < world.threads[i].program->size()) {
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

}  // namespace

size_t Try(const std::vector<std::vector<Step>> &programs, Verdict verdict,
           Start start) {
  World world;
  world.threads[0].is_hot = start.is_hot;
  world.is_other_free = start.is_other_free;
  world.looks_before_it_goes = start.looks_before_it_goes;
  world.num_threads = programs.size();
  for (size_t i = 0; i < programs.size(); ++i) {
    world.threads[i].program = &programs[i];
    world.threads[i].has_first = programs[i].front() == kFreeLoad;
  }
  size_t num_worlds = 0;
  RunAll(world, verdict, &num_worlds);
  return num_worlds;
}

}  // namespace slab_testing
