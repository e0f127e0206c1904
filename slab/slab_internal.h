// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the units of slab share: the cache, its slabs, and who calls whom.
//
//   slab.c ---> slow_path.c ---> magazine.c ---> depot.c
//     |                            |      |
//     v                            v      v
//   thread_base.c     growth.c, outside.c -> objects.c -> range.c, table.c,
//                                                         memory.c
//
// Locks, in this order: the process's (thread_base.c), a cache's, its depot's,
// the metadata's (memory.c). Constructors, destructors and the source run
// under none of them.

#ifndef MY_ALLOC_SLAB_SLAB_INTERNAL_H_
#define MY_ALLOC_SLAB_SLAB_INTERNAL_H_

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SLAB_TLS_IS_LOCAL

#include "slab/slab.h"
#include "slab/slab_inline.h"

#ifdef __cplusplus
extern "C" {
#endif

// The state of an object, one byte.
enum {
  SLAB_STATE_UNUSED = 0,  // Never handed out, not constructed.
  // SLAB_STATE_LIVE = 1 (slab_inline.h).
  SLAB_STATE_NEVER = 2,     // Of no object: what sharers' fast paths expect.
  SLAB_STATE_RAW = 3,       // Handed out, and its constructor not through yet.
  SLAB_STATE_FREE = 128,    // In its slab, constructed.
  SLAB_STATE_CACHED = 128,  // + tag: in the magazine with that tag.
  // Of magazines that came when all other tags were taken, of the depot, and
  // of whatever else changes states by compare and swap only.
  SLAB_STATE_SHARED = 255,
};

enum {
  SLAB_TAG_MIN = 1,
  SLAB_TAG_MAX = 126,
  SLAB_TAG_NONE = 0,  // A sharer's.
};

enum {
  SLAB_MAGAZINE_IDS = 4096,  // Caches with magazines in a process.
  SLAB_GRANULE_SHIFT = 16,   // Slabs are so many bytes, or a multiple.
  SLAB_GRANULE_BYTES = 1 << SLAB_GRANULE_SHIFT,
  SLAB_BYTES_MAX = 1 << 21,
  SLAB_MAGAZINE_MIN_SLOTS = 8,
  SLAB_MAGAZINE_MAX_SLOTS = 16384,
  SLAB_FLUSH_MAX = 512,             // It gives up so many at a time.
  SLAB_CACHED_BYTES_MAX = 1 << 20,  // Of objects, a magazine or depot.
  SLAB_RED_ZONE_BYTES = 16,
};

typedef enum slab_list_kind {
  SLAB_LIST_FULL,     // No free object.
  SLAB_LIST_PARTIAL,  // Some.
  SLAB_LIST_EMPTY,    // All.
  SLAB_LIST_COUNT,
  // Its memory went back, and its objects have the state UNUSED. Its place in
  // the range is known, and it comes back when memory is needed.
  SLAB_LIST_RETIRED = SLAB_LIST_COUNT,
  // Neither: its memory is just coming, or going back.
  SLAB_LIST_NONE,
} slab_list_kind_t;

// What the debug variant knows of an object.
typedef struct slab_record {
  const void *alloc_caller;
  const void *free_caller;
  uint64_t digest;  // Of the object's bytes when it was freed.
} slab_record_t;

// Some objects. In 64 bytes: there is one for each 64 KiB to 2 MiB. In the
// range it lasts as long as the cache, but for retired ones at the end;
// outside, as long as its memory. All fields: the cache's lock, but for those
// that do not change.
typedef struct slab_piece {
  struct slab_piece *next;
  struct slab_piece *prev;
  unsigned char *base;  // Of the first object. Immutable, as all to `count`.
  // A part of the range's. Outside of it: `count`, rounded up to words; in the
  // debug variant the records follow.
  uint8_t *states;
  size_t memory_bytes;
  uint32_t offset_bytes;  // From the memory's start to `base`.
  uint32_t count;         // Objects.
  uint32_t num_free;    // Objects in the slab: those never used, and FREE ones.
  uint32_t num_used;    // The first so many have been handed out before.
  uint32_t first_free;  // No object before this one is FREE.
  uint8_t list;         // slab_list_kind_t.
  bool is_outside;      // Of the range. Immutable.
  bool is_writable;     // In the range: its memory and states were allowed.
} slab_t;

typedef struct slab_list {
  slab_t *first;
  size_t count;
} slab_list_t;

// A stack of free objects between the threads. All fields: its lock.
typedef struct slab_depot {
  pthread_mutex_t lock;
  void **objects;  // `capacity`; NULL: not yet, or given back.
  size_t count;
  size_t capacity;  // Immutable. 0: no depot.
  uint64_t num_exchanges;
} slab_depot_t;

// A bump allocator over the caller's buffer.
typedef struct slab_buffer {
  unsigned char *next;
  unsigned char *end;
} slab_buffer_t;

// Where the addresses of a cache's range came from, and how much of it is used.
// Below `next_bytes`: the cache's lock.
typedef struct slab_range {
  unsigned char *map;  // States, directory, objects; NULL: none. Immutable, as
                       // all to `next_bytes`.
  size_t map_bytes;
  slab_t **directory;    // By granule; entries atomic (relaxed).
  unsigned char *start;  // Of the first granule.
  size_t length_bytes;
  size_t next_bytes;       // Beyond this no slab ever was.
  size_t states_bytes;     // So many bytes of states can be written,
  size_t directory_bytes;  // and of the directory.
  size_t num_retired;
  size_t hint_bytes;  // No retired slab starts below.
} slab_range_t;

typedef struct slab_slot {
  uintptr_t number;  // Of the slab: its address, shifted. 0: free.
  slab_t *slab;
} slab_slot_t;

// The slabs outside of the range, by address.
typedef struct slab_table {
  size_t mask;  // Slots, less one.
  struct slab_table *older;
  slab_slot_t slots[];  // Atomic: release, acquire.
} slab_table_t;

struct slab_cache {
  slab_cache_fast_t fast;
  // Immutable from here,
  char name[SLAB_NAME_BYTES_MAX + 1];
  size_t object_bytes;
  size_t align_bytes;
  size_t stride_bytes;
  size_t front_bytes;  // Red zone before the first object of a slab.
  void (*construct)(void *object, void *context);
  void (*destruct)(void *object, void *context);
  void *context;
  unsigned flags;
  bool has_buffer;
  bool has_source;  // Not the kernel.
  slab_source_t source;
  size_t max_objects;  // SIZE_MAX: no limit.
  size_t max_slots;    // Of a magazine; 0: none.
  size_t magazine_id;  // 0: none.
  void *own_memory;    // What the cache itself lies in.
  size_t own_bytes;
  slab_buffer_t buffer;  // to here.
  // Process's lock.
  bool is_shared;  // slab_shared_cache's.
  slab_cache_t *next;
  slab_cache_t *prev;
  uint64_t tags[2];  // In use, a bit each.
  // Below, `lock`.
  __attribute__((aligned(64))) pthread_mutex_t lock;
  slab_list_t lists[SLAB_LIST_COUNT];
  slab_range_t range;
  slab_table_t *table;     // Atomic (acquire); NULL: no slab was outside yet.
  uint64_t table_version;  // Atomic. Odd while slabs move in it.
  size_t num_outside;      // Slabs in it.
  size_t outside_shift;    // Log2 of the bytes of each. Immutable.
  slab_t *buffer_slab;     // The only one of a cache in a buffer. Immutable.
  size_t num_slabs;
  size_t num_objects;  // Of all slabs and of those being made.
  size_t slab_bytes;   // The same.
  size_t num_planned;  // Slabs being made.
  size_t num_waiting;  // Threads that wait for one of them.
  size_t num_forks;    // How often a child of fork had to start anew.
  pthread_cond_t grown;
  size_t empty_bytes;  // Of slabs in the list of empty ones.
  size_t keep_bytes;   // As much of these may stay, and a quarter of the rest.
  size_t released_bytes;  // When more did not, last; 0 once that was wanted.
  size_t regrown_bytes;   // Since then.
  void **buffer_slots;    // The one magazine of a cache in a buffer.
  bool buffer_slots_taken;
  // Slots of magazines that are no more and that the source does not have yet;
  // the first word of each is the next one, the second their number.
  void **dropped_slots;
  uint64_t num_allocs_before;  // Of magazines that are gone, and without one.
  uint64_t num_refills_before;
  uint64_t num_flushes_before;
  // Atomic, relaxed.
  size_t metadata_bytes;
  uint32_t generation;  // Grows when magazines should give all up.
  slab_depot_t depot;
};

#define SLAB_NORETURN __attribute__((noreturn))
#define SLAB_STRING_(x) #x
#define SLAB_STRING(x) SLAB_STRING_(x)
#define SLAB_DIE(text) slab_die("slab: " text "\n")

// An assertion that needs no stdio and no allocation.
#ifdef NDEBUG
#define SLAB_ASSERT(condition) ((void)sizeof(condition))
#else
#define SLAB_ASSERT(condition) \
  ((condition)                 \
       ? (void)0               \
       : SLAB_DIE(__FILE__ ":" SLAB_STRING(__LINE__) ": broken: " #condition))
#endif

static inline size_t slab_round_up(size_t value, size_t power_of_two) {
  return (value + power_of_two - 1) & ~(power_of_two - 1);
}

// From the first object's start to the last one's end.
static inline size_t slab_span_bytes(const slab_cache_t *cache,
                                     const slab_t *slab) {
  return slab->count * cache->stride_bytes;
}

static inline unsigned char *slab_memory_of(const slab_t *slab) {
  return slab->base - slab->offset_bytes;
}

// How many objects fit; `count` is less where the limit says so.
static inline size_t slab_room(const slab_cache_t *cache, const slab_t *slab) {
  return (slab->memory_bytes - slab->offset_bytes) / cache->stride_bytes;
}

// Returns the records, one an object, which only the debug variant has.
static inline slab_record_t *slab_records(const slab_cache_t *cache,
                                          const slab_t *slab) {
  return (slab_record_t *)(void *)(slab->states +
                                   slab_round_up(slab_room(cache, slab), 8));
}

// ---- misuse.c: the process ends, with one line ----

typedef enum slab_misuse {
  SLAB_MISUSE_FREED,       // Free already.
  SLAB_MISUSE_UNUSED,      // Never handed out.
  SLAB_MISUSE_INTERIOR,    // Inside an object, not at its start.
  SLAB_MISUSE_FOREIGN,     // No object of any cache.
  SLAB_MISUSE_OTHER,       // An object of another cache.
  SLAB_MISUSE_TWICE,       // Two threads freed it at once.
  SLAB_MISUSE_MISCOUNTED,  // The same; which object is not known.
  SLAB_MISUSE_RED_ZONE,    // Written before or behind the object.
  SLAB_MISUSE_WRITTEN,     // Written while it was free.
} slab_misuse_t;

typedef struct slab_report {
  slab_misuse_t misuse;
  const char *function;  // That noticed.
  const slab_cache_t *cache;
  const void *ptr;
  const void *object;           // NULL: none.
  const slab_record_t *record;  // Or NULL.
  const slab_cache_t *other;    // SLAB_MISUSE_OTHER.
  const void *caller;           // NULL: not known.
} slab_report_t;

SLAB_NORETURN void slab_die(const char *message);
SLAB_NORETURN void slab_report_misuse(const slab_report_t *report);
// Another thread freed the object as well.
SLAB_NORETURN void slab_die_twice(const slab_cache_t *cache, const void *object,
                                  const char *function);
// Names `count` live objects at `slab_cache_destroy`.
void slab_report_leaks(slab_cache_t *cache, size_t count, void *const *first,
                       size_t num_first);
// Finds out what is wrong with freeing `ptr` and reports it.
SLAB_NORETURN void slab_report_free(slab_cache_t *cache, void *ptr,
                                    const char *function, const void *caller);

// ---- memory.c: memory of the source; no lock of a cache held ----

void *slab_memory_alloc(slab_cache_t *cache, size_t size_bytes,
                        size_t align_bytes);
void slab_memory_free(slab_cache_t *cache, void *ptr, size_t size_bytes);
// The same for what is not objects; zeroed, at a multiple of 64.
void *slab_metadata_alloc(slab_cache_t *cache, size_t size_bytes);
void slab_metadata_free(slab_cache_t *cache, void *ptr, size_t size_bytes);
void slab_memory_lock(void);
void slab_memory_unlock(void);

// The calls to the kernel: a table, so that tests can make each fail.
typedef struct slab_kernel {
  // Maps zeroed memory; NULL on failure.
  void *(*map)(size_t size_bytes);
  void (*unmap)(void *ptr, size_t size_bytes);
  // Reserves addresses; NULL on failure. `unmap` ends it.
  void *(*reserve)(size_t size_bytes);
  // Makes reserved addresses readable, all of them zero, or writable; false on
  // failure.
  bool (*allow_reads)(void *ptr, size_t size_bytes);
  bool (*allow_writes)(void *ptr, size_t size_bytes);
  // The contents are not needed any more; where they are not zero afterwards,
  // they are as before.
  void (*discard)(void *ptr, size_t size_bytes);
  // Huge pages, please.
  void (*advise_huge)(void *ptr, size_t size_bytes);
} slab_kernel_t;
extern const slab_kernel_t slab_kernel_default;
extern const slab_kernel_t *slab_kernel;  // Written by tests only.

// ---- range.c: the addresses of a cache on the kernel's memory ----

// Reserves the range. None is no failure.
void slab_range_create(slab_cache_t *cache, size_t number);
// Gives the addresses back, and all slabs in them.
void slab_range_destroy(slab_cache_t *cache);
// Cache's lock held, for these. Returns a slab without objects of about `bytes`
// (a multiple of granules), or the lowest that is retired, in no list. NULL:
// the range is full, or there is no memory.
slab_t *slab_range_take(slab_cache_t *cache, size_t bytes, bool is_huge);
// Its states become UNUSED, and it may be taken again.
void slab_range_retire(slab_cache_t *cache, slab_t *slab);
// In the child of a fork: slabs that other threads were retiring are retired.
void slab_range_retire_lost(slab_cache_t *cache);
// Forgets retired slabs above all others.
void slab_range_trim(slab_cache_t *cache);
// Returns the slab around `address`, retired or not, NULL if none.
slab_t *slab_range_find(const slab_cache_t *cache, uintptr_t address);
const char *slab_range_check(const slab_cache_t *cache);

// ---- table.c: slabs outside of the range ----

// Returns the slab around `address`, NULL if none. Takes the cache's lock only
// if another thread has it and changes the table.
slab_t *slab_table_find(slab_cache_t *cache, uintptr_t address);
// Makes sure that a slab more has room. No lock held; false: no memory.
bool slab_table_make_room(slab_cache_t *cache);
// Cache's lock held. False: others took the room.
bool slab_table_insert(slab_cache_t *cache, slab_t *slab);
void slab_table_remove(slab_cache_t *cache, const slab_t *slab);
// In the child of a fork: slabs that other threads were retiring are forgotten.
void slab_table_forget_lost(slab_cache_t *cache);
void slab_table_destroy(slab_cache_t *cache);

// ---- objects.c: objects in slabs; the cache's lock held but where it says
// ----

// Returns the slab of the cache around `address`, retired or not, NULL if none;
// an address between two slabs' objects may count to one of them.
slab_t *slab_find(slab_cache_t *cache, uintptr_t address);
// Returns the state of the object outside of the range that starts at
// `address`; NULL if none does. Takes no lock.
uint8_t *slab_state_outside(slab_cache_t *cache, uintptr_t address);
// Index of the object at or around `address`.
size_t slab_index_of(const slab_cache_t *cache, const slab_t *slab,
                     uintptr_t address);
void *slab_object_at(const slab_cache_t *cache, const slab_t *slab,
                     size_t index);
// Makes a slab one of the cache's; and no more.
void slab_list_add(slab_cache_t *cache, slab_t *slab);
void slab_list_drop(slab_cache_t *cache, slab_t *slab);
// Takes up to `count` objects out of slabs; their states become `state`. Fills
// `out_objects`; the last `*out_num_unused` of them are not constructed yet: if
// the cache has a constructor, their states are RAW until the caller has called
// it. Returns how many.
size_t slab_take(slab_cache_t *cache, uint8_t state, void **out_objects,
                 size_t count, size_t *out_num_unused);
// Dies if the slab counts more free objects than have the state, or has been
// damaged (debug variant).
void slab_verify(slab_cache_t *cache, slab_t *slab, const char *function);
// Puts an object whose state is `FREE` already back into its slab.
void slab_put(slab_cache_t *cache, slab_t *slab, size_t index);
// Puts objects whose state is `from` into their slabs. No lock held.
void slab_put_all(slab_cache_t *cache, void *const *objects, size_t count,
                  uint8_t from);
const char *slab_check_layer(slab_cache_t *cache);

// Returns the state of the object that starts at `address`; NULL if none does.
// Takes no lock.
static inline uint8_t *slab_state_at(slab_cache_t *cache, uintptr_t address) {
  uint8_t *state;
  return SLAB_LIKELY(slab_find_state(&cache->fast, address, &state))
             ? state
             : slab_state_outside(cache, address);
}

// ---- growth.c: slabs come and go; no lock held but where it says so ----

// Makes a slab more, or waits for one that another thread makes; false if there
// is no memory or no room under the limit. True: it is worth a look.
bool slab_grow(slab_cache_t *cache);
// Takes 1 to `count` objects from slabs, making one if need be, and constructs
// them. 0: no memory.
size_t slab_take_constructed(slab_cache_t *cache, uint8_t state,
                             void **out_objects, size_t count);
// Unlinks empty slabs of at least `bytes` altogether into a chain. Cache's lock
// held.
slab_t *slab_unlink_empty(slab_cache_t *cache, size_t bytes,
                          const char *function);
// Destructs the objects of a chain, gives its memory back and retires its
// slabs; returns how many bytes.
size_t slab_retire_chain(slab_cache_t *cache, slab_t *first);
// Is the calling thread in the midst of that, in a destructor or the source?
bool slab_is_retiring(const slab_t *slab);
// Gives memory of empty slabs back if there is too much.
void slab_release_excess(slab_cache_t *cache);
// Forgets what was learned about how many to keep. Cache's lock held.
void slab_keep_least(slab_cache_t *cache);

// Cache's lock held, for these. A slab of `bytes` is there again.
void slab_learn_to_keep(slab_cache_t *cache, size_t bytes);
// Makes an empty slab of up to `count` objects of one without any.
void slab_start(const slab_cache_t *cache, slab_t *slab, size_t count);

// ---- outside.c: slabs in no range; no lock held but where it says so ----

// As slab_grow.
bool slab_grow_outside(slab_cache_t *cache);
// Gives back all of a slab whose objects are destructed.
void slab_retire_outside(slab_cache_t *cache, slab_t *slab);
// In the child of a fork, cache's lock held: slabs that other threads were
// making will not come, and are nobody's part of the limit any more.
void slab_forget_planned(slab_cache_t *cache);
// Makes the rest of the buffer one slab, of any length. False: no room for an
// object. While the cache is created.
bool slab_grow_in_buffer(slab_cache_t *cache);

// ---- depot.c: objects with the state SHARED ----

int slab_depot_init(slab_cache_t *cache);
// Returns how many objects it would take now. May call the source, which may
// fork, so before any object's state says that it is on its way.
size_t slab_depot_room(slab_cache_t *cache);
size_t slab_depot_put(slab_cache_t *cache, void *const *objects, size_t count);
size_t slab_depot_take(slab_cache_t *cache, void **out_objects, size_t count);
// Puts all of it into the slabs.
void slab_depot_drain(slab_cache_t *cache);
// Gives the stack's memory back if it is empty.
void slab_depot_trim(slab_cache_t *cache);

// ---- magazine.c: the calling thread's, but where it says so ----

// Returns the calling thread's magazine of `cache`, set up; NULL if it has none
// and gets none.
slab_magazine_t *slab_magazine_get(slab_cache_t *cache);
// Makes sure that an object can be popped (`want` of them, if it can be); false
// if there is no memory.
bool slab_magazine_refill(slab_magazine_t *magazine, size_t want);
// Gives a magazine without a tag one that is free now, if there is one.
void slab_magazine_ask_for_tag(slab_magazine_t *magazine);
// Makes room for an object more.
void slab_magazine_make_room(slab_magazine_t *magazine);
// Gives all up, slots and all, to the slabs; the magazine is all zero then.
// Process's lock held. Also that of a thread that does not run.
void slab_magazine_drain(slab_magazine_t *magazine);
// The same, but leaves its objects where they are, cached by their states only.
void slab_magazine_abandon(slab_magazine_t *magazine);
// Gives the source slots of magazines that are no more. No lock held.
void slab_free_dropped_slots(slab_cache_t *cache);
// The state of objects in it. What its fast paths expect is another one if it
// has no tag of its own.
uint8_t slab_magazine_state(const slab_magazine_t *magazine);
// Makes an object that it holds LIVE or SHARED, and returns where its state is;
// dies if that is not what it should be.
uint8_t *slab_magazine_change(const slab_magazine_t *magazine, void *object,
                              uint8_t to);

// ---- slow_path.c: `slab_alloc` and `slab_free` in all cases ----

// Allocates one; a magazine that is empty is refilled for `want`.
void *slab_alloc_checked(slab_cache_t *cache, size_t want, const void *caller);
void slab_free_checked(slab_cache_t *cache, void *object, const char *function,
                       const void *caller);

// ---- debug.c: the debug variant ----

void *slab_debug_alloc(slab_cache_t *cache, const void *caller);
void slab_debug_free(slab_cache_t *cache, void *object, const char *function,
                     const void *caller);
void slab_debug_init_slab(const slab_cache_t *cache, slab_t *slab);
// Dies if anything was written where no live object is.
void slab_debug_verify(slab_cache_t *cache, slab_t *slab, const char *function);
const char *slab_debug_check(const slab_cache_t *cache, const slab_t *slab);

// ---- thread_base.c ----

void slab_process_lock(void);
void slab_process_unlock(void);
// Gives the cache its number. Process's lock held, as below.
void slab_take_id(slab_cache_t *cache);
// Makes the cache known.
void slab_register(slab_cache_t *cache);
void slab_unregister(slab_cache_t *cache);
slab_cache_t *slab_first_cache(void);
// Gives the calling thread magazines; false if there is no memory.
bool slab_thread_create(void);
bool slab_thread_exists(void);
// Calls `visit` with each thread's magazine of `cache` that is in use.
void slab_for_each_magazine(slab_cache_t *cache,
                            void (*visit)(void *context,
                                          slab_magazine_t *magazine),
                            void *context);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SLAB_SLAB_INTERNAL_H_
