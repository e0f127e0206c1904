// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// slab: caches of objects of one size.
//
// For: programs that make and drop very many objects of one size, that want
// them constructed once and used often, or that have no malloc at all. Not
// for: objects of many sizes (heap), or memory shared between processes
// (shmipc).
//
//   #include "slab/slab.h"
//
//   slab_options_t options = {.name = "node", .object_bytes = sizeof(node_t)};
//   slab_cache_t *cache = slab_cache_create(&options);
//   if (cache == NULL) {
//     return -errno;
//   }
//   node_t *node = slab_alloc(cache);  // NULL and ENOMEM when there is none.
//   slab_free(cache, node);
//   int status = slab_cache_destroy(cache, 0);  // -EBUSY: objects are live.
//
// The state of every object is kept outside of the objects and is found from
// the address by arithmetic. So each call that takes an object checks it, in
// the only build there is: an object that is free already, a pointer into an
// object, an object of another cache and a pointer to anything else are told
// apart, reported as one line on stderr, and end the process by abort():
//
//   slab: slab_free: double free: 0x7f01a2c0, object 0x7f01a2c0 of 64 bytes,
//   cache "node", thread 4711, called from 0x5581c0a3
//
// and a write past the end of an object cannot reach what the cache knows.
//
// Threads: every function may be called from any thread at any time but for
// `slab_cache_destroy`; an object may be freed by another thread than the one
// that got it. If two threads free one object within the same few
// instructions, both calls may return; the mistake is then reported before the
// object is handed out twice, when a thread exits, before the memory of its
// slab goes back, or by `slab_cache_destroy`, whichever comes first. A thread
// that is held up inside such a call for so long that the object is handed out
// again, or that its slab is gone, frees what is there then.
// Signals: not from a signal handler, as with malloc. No function is a
// cancellation point.
// fork: the child may use every cache, from handlers of pthread_atfork on that
// were registered after slab was loaded; what other threads of the parent had
// cached goes back to the slabs, their live objects stay live, and an object
// that one of them was constructing stays unused. (Not so after `_Fork`.)

#ifndef MY_ALLOC_SLAB_SLAB_H_
#define MY_ALLOC_SLAB_SLAB_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SLAB_API __attribute__((visibility("default")))
#define SLAB_MUST_USE __attribute__((warn_unused_result))

#define SLAB_OBJECT_BYTES_MAX ((size_t)1 << 20)
#define SLAB_ALIGN_BYTES_MAX ((size_t)1 << 20)
#define SLAB_NAME_BYTES_MAX 31  // Longer names are cut.

typedef struct slab_cache slab_cache_t;

// Where a cache gets its memory. Both are called from any thread, several at a
// time, with no lock of slab held; they must not use slab themselves, wait for
// a thread that does, or be cancelled.
typedef struct slab_source {
  // Returns `size_bytes` at a multiple of `align_bytes`, a power of two, or
  // NULL. The contents do not matter. For objects it is asked for 64 KiB to
  // 4 MiB at a multiple of as much; memory that is not, or that the cache has
  // already, ends the process.
  void *(*alloc)(void *context, size_t size_bytes, size_t align_bytes);
  // Takes back what `alloc` returned, whole.
  void (*free)(void *context, void *ptr, size_t size_bytes);
  void *context;
} slab_source_t;

enum {
  // Red zones before and behind each object, objects filled while they are
  // free, the call sites of the last allocation and free in each report. Every
  // call takes the cache's lock.
  SLAB_DEBUG = 1 << 0,
  // Nothing is cached for threads: every call takes the lock and goes to the
  // slabs. For caches with a hard limit that all threads must be able to use
  // to the last object.
  SLAB_NO_MAGAZINES = 1 << 1,
};

// What a cache is made of. Zero is a good value for every member but
// `object_bytes`.
typedef struct slab_options {
  const char *name;     // For reports; copied. NULL: "".
  size_t object_bytes;  // 1 to SLAB_OBJECT_BYTES_MAX.
  // A power of two up to SLAB_ALIGN_BYTES_MAX. 0: the largest power of two
  // that divides `object_bytes`, up to 16; enough for any C type of that size
  // that does not ask for more.
  size_t align_bytes;
  // Called once for each object, before it is first handed out, and once
  // before its memory goes back: an object that is freed stays as the caller
  // left it and is handed out so again. No lock is held. Neither may use the
  // same cache, throw, longjmp, or be cancelled. Either may be NULL.
  void (*construct)(void *object, void *context);
  void (*destruct)(void *object, void *context);
  void *context;
  unsigned flags;  // SLAB_...
  // At most so many objects exist, those cached for threads included: up to
  // 1/64 of the limit a thread, which other threads do not get. Below 128,
  // nothing is cached, as with SLAB_NO_MAGAZINES. 0: no limit.
  size_t max_objects;
  // Functions NULL: the kernel, from which a cache with magazines reserves
  // addresses once, up to 64 GiB (of those that it has no use for, no memory
  // comes), fewer if there is a limit to them.
  slab_source_t source;
  // If not NULL, all memory of the cache, its handle included, is in here and
  // stays there, but for the heads of threads' magazines; `source` is not
  // used. See SLAB_BUFFER_BYTES.
  void *buffer;
  size_t buffer_bytes;
} slab_options_t;

// How many bytes of buffer surely hold `count` objects of `object_bytes` at a
// multiple of `align_bytes` (not 0), whatever the buffer's own alignment; the
// second one for a cache with SLAB_DEBUG. Both are constants if all three are.
#define SLAB_BUFFER_BYTES(object_bytes, align_bytes, count)                  \
  SLAB_BUFFER_OF_(                                                           \
      SLAB_ROUND_UP_((object_bytes) < 2 ? 2 : (object_bytes), align_bytes) + \
          1,                                                                 \
      align_bytes, count)
#define SLAB_BUFFER_BYTES_DEBUG(object_bytes, align_bytes, count)           \
  SLAB_BUFFER_OF_(                                                          \
      SLAB_ROUND_UP_(SLAB_ROUND_UP_(16, align_bytes) + (object_bytes) + 16, \
                     align_bytes) +                                         \
          1 + 24,                                                           \
      align_bytes, count)
// `each_bytes` an object, its state included.
#define SLAB_BUFFER_OF_(each_bytes, align_bytes, count) \
  (4096 + 3 * (size_t)(align_bytes) + (size_t)(count) * (each_bytes))
#define SLAB_ROUND_UP_(value, multiple)                            \
  (((size_t)(value) + (size_t)(multiple)-1) / (size_t)(multiple) * \
   (size_t)(multiple))

// Makes a cache. Returns NULL with `errno` EINVAL when `options` are NULL or
// one is out of range or a buffer cannot hold one object, ENOMEM when there is
// no memory. With a buffer it makes no system call, nor does any other function
// for such a cache as long as one thread uses it and that thread was the first
// of the process to use any cache; others map 512 KiB of addresses, once a
// thread.
SLAB_API slab_cache_t *slab_cache_create(const slab_options_t *options)
    SLAB_MUST_USE;

// Returns the process's own cache for objects of this size at such multiples
// (0: as in options), made by the first call for it: for allocators that have
// no state of their own. It is never to be destroyed. NULL and `errno` as
// above.
SLAB_API slab_cache_t *slab_shared_cache(size_t object_bytes,
                                         size_t align_bytes) SLAB_MUST_USE;

enum {
  SLAB_DESTROY_LIVE = 1 << 0,   // Live objects go with the cache.
  SLAB_DESTROY_QUIET = 1 << 1,  // They are not named on stderr.
};

// Ends a cache and gives back its memory. If objects are live, names them in
// one line on stderr (how many, the first addresses) and, without
// SLAB_DESTROY_LIVE, returns -EBUSY with the cache as before; with it, their
// destructors run as well. Otherwise returns 0. NULL is a no-op. No other
// thread may be using the cache or start to. `errno` is preserved.
SLAB_API int slab_cache_destroy(slab_cache_t *cache, unsigned flags);

// Returns an object, its contents those of its constructor or of its last use,
// or NULL with `errno` ENOMEM.
SLAB_API void *slab_alloc(slab_cache_t *cache) SLAB_MUST_USE;

// The same, all of it zero. For caches without a constructor; with one, NULL
// and EINVAL.
SLAB_API void *slab_alloc_zeroed(slab_cache_t *cache) SLAB_MUST_USE
    __attribute__((malloc));

// Frees an object of `cache`. NULL is a no-op. `errno` is preserved.
SLAB_API void slab_free(slab_cache_t *cache, void *object);

// Fills `out_objects` with `count` objects and returns 0, or returns -ENOMEM
// and has allocated none; `out_objects` are then to be forgotten.
SLAB_API int slab_alloc_bulk(slab_cache_t *cache, size_t count,
                             void **out_objects) SLAB_MUST_USE;

// Frees `count` objects. NULLs among them are skipped.
SLAB_API void slab_free_bulk(slab_cache_t *cache, size_t count,
                             void *const *objects);

// Gives all slabs back to the source that hold no live object, after taking
// back what the calling thread and the depot have cached. Other threads give
// up what they have cached when they next run out or overflow. Returns how
// many bytes of slabs went back.
SLAB_API size_t slab_reap(slab_cache_t *cache);

// Called with each live object; false ends the walk.
typedef bool (*slab_visit_t)(void *context, void *object);

// Visits every live object, in order of address within a slab. Returns false
// when `visit` did. Objects that other threads get or free meanwhile may or
// may not be visited. `visit` must not use any cache, wait for a thread that
// does, or fork: the cache is locked.
SLAB_API bool slab_walk(slab_cache_t *cache, slab_visit_t visit, void *context);

// Verifies every invariant that can be seen while no other thread is inside
// the cache. Returns NULL, or a text naming the first broken one. Slow:
// proportional to the cache.
SLAB_API const char *slab_check(slab_cache_t *cache);

// Where the objects are. Of one moment as far as other threads hold still.
typedef struct slab_statistics {
  size_t object_bytes;  // As asked for.
  size_t stride_bytes;  // From one object to the next.
  size_t num_live;      // Handed out.
  size_t num_cached;    // Free, in magazines and in the depot.
  size_t num_free;      // Free, in slabs; those never used included.
  size_t capacity;      // num_live + num_cached + num_free.
  size_t num_slabs;
  size_t slab_bytes;      // From the source, for objects.
  size_t waste_bytes;     // Of these, in no object.
  size_t metadata_bytes;  // From the source, for everything else: addresses,
                          // of which slabs that went back use no memory.
  uint64_t num_allocs;    // Objects handed out so far.
  uint64_t num_refills;   // Times that a magazine was empty.
  uint64_t num_flushes;   // Times that one was full and had to give up some.
  uint64_t num_depot_exchanges;  // Of both, with the depot.
  double hit_rate;  // Of allocations, from the magazine alone; 1 if none.
} slab_stats_t;

// Fills `out_stats`. Looks at one byte an object.
SLAB_API void slab_stats(slab_cache_t *cache, slab_stats_t *out_stats);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SLAB_SLAB_H_
