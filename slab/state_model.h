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

#ifndef MY_ALLOC_SLAB_STATE_MODEL_H_
#define MY_ALLOC_SLAB_STATE_MODEL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "slab/slab_internal.h"

namespace slab_testing {

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
  const std::vector<Step> *program = nullptr;  // Worlds are copied often.
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
  // Does the slab look at the states before it goes?
  bool looks_before_it_goes = true;
  std::array<Thread, kMaxThreads> threads;
  size_t num_threads = 0;
};

// What a test says of a world at its end.
using Verdict = void (*)(const World &world);

// What is so in the beginning, beyond the live object.
struct Start {
  bool is_hot = false;         // The first thread allocated it last.
  bool is_other_free = false;  // The slab's other object.
  bool looks_before_it_goes = true;
};

// Runs the programs, one a thread, in every interleaving, and each of these to
// every end, which `verdict` is called with. Returns how many ends there are.
size_t Try(const std::vector<std::vector<Step>> &programs, Verdict verdict,
           Start start = {});

}  // namespace slab_testing

#endif  // MY_ALLOC_SLAB_STATE_MODEL_H_
