// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The lanes: streams opened, closed and handed on.
//
// A lane whose thread has ended is parked, chunk and all, on a lock-free stack,
// and the next thread goes on in the same chunk after a THREAD record. So a
// program that starts a million short threads fills chunks, not a chunk each.
//
// Streams lie in memory that the kernel wipes in a forked child. A zeroed
// stream has no room and no writer, so an append in the child, which may come
// before any fork handler runs or without one (_Fork, raw clone), takes the
// slow path and fails there; the fast path pays nothing for the test.
//
// Invariants:
//   1. A lane is with one thread, or parked, never both, never twice.
//   2. Streams of lanes below `lane_count` are set up; blocks are never
//      unmapped before the writer is closed, so a parked stream may be looked
//      at by a thread that loses the race to pop it.
//   3. Times in a lane never go back, across threads too: a thread that takes a
//      lane over does so after the one before it let go.
//
// Not done: chunks are not shared by threads that live at the same time. A
// process with a thousand threads that each allocate once has a thousand.

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "leakcheck/heaplog_writer_internal.h"

// Linux 4.14; older headers lack it.
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

static heaplog_lane_block_t *block_of(heaplog_writer_t *writer, uint32_t lane) {
  // Acquire pairs with the release in ensure_block().
  return atomic_load_explicit(&writer->blocks[lane / HEAPLOG_LANES_PER_BLOCK],
                              memory_order_acquire);
}

static heaplog_stream_t *lane_stream(heaplog_writer_t *writer, uint32_t lane) {
  return &block_of(writer, lane)->lanes[lane % HEAPLOG_LANES_PER_BLOCK];
}

// Maps the block that `lane` is in, if it is not. Returns 0 or -ENOMEM.
static int ensure_block(heaplog_writer_t *writer, uint32_t lane) {
  if (block_of(writer, lane) != NULL) {
    return 0;
  }
  heaplog_lane_block_t *block = writer->system->map_memory(sizeof(*block));
  if (block == NULL) {
    return -ENOMEM;
  }
  (void)writer->system->advise(block, HEAPLOG_LANE_BLOCK_WIPED_BYTES,
                               MADV_WIPEONFORK);
  heaplog_lane_block_t *none = NULL;
  // Release: the block is zeroed. Pairs with block_of().
  if (!atomic_compare_exchange_strong_explicit(
          &writer->blocks[lane / HEAPLOG_LANES_PER_BLOCK], &none, block,
          memory_order_release, memory_order_relaxed)) {
    writer->system->unmap(block, sizeof(*block));
  }
  return 0;
}

static void park(heaplog_writer_t *writer, heaplog_stream_t *stream) {
  uint64_t top = atomic_load_explicit(&writer->parked, memory_order_relaxed);
  uint64_t next;
  do {
    atomic_store_explicit(&stream->parked_below, (uint32_t)top,
                          memory_order_relaxed);
    next = ((top >> 32) + 1) << 32 | (stream->lane + 1);
    // Release: all of the stream. Pairs with unpark().
  } while (!atomic_compare_exchange_weak_explicit(
      &writer->parked, &top, next, memory_order_release, memory_order_relaxed));
}

// Takes a lane that no thread has any more; NULL when there is none.
static heaplog_stream_t *unpark(heaplog_writer_t *writer) {
  // Acquire pairs with park().
  uint64_t top = atomic_load_explicit(&writer->parked, memory_order_acquire);
  for (;;) {
    if ((uint32_t)top == 0) {
      return NULL;
    }
    heaplog_stream_t *stream = lane_stream(writer, (uint32_t)top - 1);
    uint64_t next =
        ((top >> 32) + 1) << 32 |
        atomic_load_explicit(&stream->parked_below, memory_order_relaxed);
    if (atomic_compare_exchange_weak_explicit(&writer->parked, &top, next,
                                              memory_order_acquire,
                                              memory_order_acquire)) {
      return stream;
    }
  }
}

// Begins a lane of its own. Returns 0, -EAGAIN or -ENOMEM.
static int new_lane(heaplog_writer_t *writer, heaplog_stream_t **out_stream) {
  uint32_t lane =
      atomic_load_explicit(&writer->lane_count, memory_order_relaxed);
  do {
    if (lane == HEAPLOG_LANES_MAX) {
      return -EAGAIN;
    }
    int status = ensure_block(writer, lane);
    if (status != 0) {
      return status;
    }
    // Relaxed: only deals out numbers.
  } while (!atomic_compare_exchange_weak_explicit(
      &writer->lane_count, &lane, lane + 1, memory_order_relaxed,
      memory_order_relaxed));
  heaplog_stream_t *stream = lane_stream(writer, lane);
  stream->writer = writer;
  stream->lane = lane;
  stream->hardware_crc = writer->hardware_crc;
  stream->last_time_ns = writer->start_monotonic_ns;
  *out_stream = stream;
  return 0;
}

int heaplog_stream_open(heaplog_writer_t *writer, uint64_t time_ns,
                        uint64_t tid, const char *name,
                        heaplog_stream_t **out_stream) {
  if (!heaplog_writer_is_ours(writer)) {
    return -ESTALE;
  }
  heaplog_stream_t *stream = unpark(writer);
  if (stream == NULL) {
    int status = new_lane(writer, &stream);
    if (status != 0) {
      return status;
    }
  }
  stream->thread_index =
      atomic_fetch_add_explicit(&writer->thread_count, 1, memory_order_relaxed);
  stream->tid = tid;
  stream->thread_start_ns = time_ns;
  memset(stream->thread_name, 0, sizeof(stream->thread_name));
  if (name != NULL) {
    memcpy(stream->thread_name, name,
           strnlen(name, sizeof(stream->thread_name) - 1));
  }
  *out_stream = stream;
  return 0;
}

void heaplog_stream_close(heaplog_stream_t *stream, uint64_t time_ns) {
  // In a forked child the stream is wiped.
  if (stream == NULL || stream->writer == NULL) {
    return;
  }
  heaplog_append_thread_end(stream, time_ns);
  stream->announced = false;
  atomic_store_explicit(&stream->limit, 0, memory_order_relaxed);
  park(stream->writer, stream);
}

// Unmaps the lanes' chunks, by the table that a forked child still has.
static void unmap_chunks(heaplog_writer_t *writer) {
  uint32_t count =
      atomic_load_explicit(&writer->lane_count, memory_order_relaxed);
  for (uint32_t lane = 0; lane < count; lane++) {
    _Atomic(unsigned char *) *entry =
        &block_of(writer, lane)->chunks[lane % HEAPLOG_LANES_PER_BLOCK];
    unsigned char *chunk = atomic_load_explicit(entry, memory_order_relaxed);
    if (chunk != NULL) {
      writer->system->unmap(chunk, HEAPLOG_CHUNK_BYTES);
      atomic_store_explicit(entry, NULL, memory_order_relaxed);
    }
  }
}

void heaplog_lanes_unmap(heaplog_writer_t *writer) {
  unmap_chunks(writer);
  for (uint32_t lane = 0; lane < HEAPLOG_LANES_MAX;
       lane += HEAPLOG_LANES_PER_BLOCK) {
    heaplog_lane_block_t *block = block_of(writer, lane);
    if (block != NULL) {
      writer->system->unmap(block, sizeof(*block));
    }
  }
}

void heaplog_lanes_forget(heaplog_writer_t *writer) {
  unmap_chunks(writer);
  // What the kernel has done already where it can.
  uint32_t count =
      atomic_load_explicit(&writer->lane_count, memory_order_relaxed);
  for (uint32_t lane = 0; lane < count; lane++) {
    memset(lane_stream(writer, lane), 0, sizeof(heaplog_stream_t));
  }
}
