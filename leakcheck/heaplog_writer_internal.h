// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The parts that the writer's sources share: heaplog_writer.c (the file),
// heaplog_lane.c (streams), heaplog_chunk.c (taking chunks) and
// heaplog_append.c (records).
//
// A *lane* is a sequence of chunks that one thread at a time appends to: the
// stream of a thread, and after its end the stream of another. Lanes are dealt
// out in blocks, which stay mapped until the writer is closed.

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_WRITER_INTERNAL_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_WRITER_INTERNAL_H_

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "leakcheck/heaplog_format.h"
#include "leakcheck/heaplog_system.h"
#include "leakcheck/heaplog_writer.h"

#define HEAPLOG_LANES_PER_BLOCK 256u
#define HEAPLOG_BLOCKS_MAX (HEAPLOG_LANES_MAX / HEAPLOG_LANES_PER_BLOCK)

// One lane. All of it is written by the thread that has the stream, save where
// a field says otherwise. It lies in memory that the kernel wipes in a forked
// child: there `limit` and `used` are 0, so that an append goes the slow way,
// and `writer` is NULL, so that it ends there.
struct heaplog_stream {
  unsigned char *chunk;  // Mapped; NULL before the first.
  uint32_t used;         // Payload bytes committed.
  // Payload bytes that compact events may fill. 0 sends the next append the
  // slow way. Also set by a signal handler in the same thread.
  _Atomic uint32_t limit;
  uint32_t crc_state;  // Of the chunk header and the payload committed.
  // An append is under way in this thread. Read by signal handlers in it.
  _Atomic bool busy;
  bool hardware_crc;  // Immutable.
  bool announced;     // This chunk has the thread's THREAD record.
  // The previous values in this chunk, which the deltas count from.
  uint64_t last_time_ns;  // Absolute. Goes on from chunk to chunk.
  uint64_t last_address;
  uint64_t last_size_bytes;
  uint64_t last_slack_bytes;
  uint32_t last_stack_id;            // Of an event.
  uint32_t last_stack_node;          // Of a STACK record.
  uint64_t last_instruction;         // Of a STACK record.
  heaplog_writer_t *writer;          // Immutable.
  _Atomic uint64_t lost_unreported;  // Lost, not yet in a LOST record.
  uint32_t lane;                     // Immutable.
  uint32_t sequence;                 // Of the next chunk.
  uint32_t thread_index;
  uint64_t tid;
  uint64_t thread_start_ns;  // Absolute.
  char thread_name[HEAPLOG_THREAD_NAME_BYTES];
  // Lane number plus one below it on the stack of parked lanes; 0: none. May be
  // read by a thread that is about to fail to pop it.
  _Atomic uint32_t parked_below;
} __attribute__((aligned(64)));

static_assert(sizeof(struct heaplog_stream) <= 192, "three cache lines");

typedef struct heaplog_lane_block {
  // Wiped on fork; nothing else may share these pages.
  heaplog_stream_t lanes[HEAPLOG_LANES_PER_BLOCK];
  // Not wiped, so that a child can unmap what it inherited. Written by the
  // thread that has the lane, read in a child only.
  _Atomic(unsigned char *) chunks[HEAPLOG_LANES_PER_BLOCK];
} heaplog_lane_block_t;

#define HEAPLOG_LANE_BLOCK_WIPED_BYTES \
  (HEAPLOG_LANES_PER_BLOCK * sizeof(heaplog_stream_t))
#if defined(__x86_64__)
static_assert(HEAPLOG_LANE_BLOCK_WIPED_BYTES % 4096 == 0, "whole pages");
#endif

struct heaplog_writer {
  const heaplog_system_t *system;  // Immutable.
  // In a page that is wiped on fork: not 0 in the process that opened the log.
  _Atomic uint32_t *ours;
  heaplog_file_header_t *header;  // The file's first page, mapped shared.
  uint32_t header_bytes;          // Immutable.
  bool hardware_crc;              // Immutable.
  uint64_t start_monotonic_ns;    // Immutable.
  dev_t device;                   // Immutable. Which file is ours, should the
  ino_t inode;                    // program close our descriptor.
  _Atomic int descriptor;         // Replaced by compare-and-swap.
  _Atomic int error;              // First -errno; 0: none.
  // The greatest time at which a chunk was begun: the earliest for the events
  // of any chunk to come. Only grows.
  _Atomic uint64_t floor_ns;
  _Atomic uint64_t retry_ns;      // No chunk is tried for before this.
  _Atomic uint32_t lane_count;    // Only grows.
  _Atomic uint32_t thread_count;  // Only grows.
  // Stack of lanes without a thread. Low half: lane number plus one, 0: empty.
  // High half: counts the changes, so that a pop cannot mistake a lane that
  // was popped and pushed again for an unchanged stack.
  _Atomic uint64_t parked;
  _Atomic(heaplog_lane_block_t *) blocks[HEAPLOG_BLOCKS_MAX];  // Set once.
  size_t mapped_bytes;  // Of this struct and the page in front. Immutable.
  char path[PATH_MAX];  // Absolute. Immutable.
};

// Whether this process opened the log, rather than being a forked child.
static inline bool heaplog_writer_is_ours(const heaplog_writer_t *writer) {
  // Relaxed: changes in a forked child only, before it runs.
  return atomic_load_explicit(writer->ours, memory_order_relaxed) != 0;
}

// heaplog_writer_open() on a system of the caller's, for tests.
int heaplog_writer_open_on(const heaplog_system_t *system,
                           const heaplog_writer_options_t *options,
                           heaplog_writer_t **out_writer)
    __attribute__((warn_unused_result));

// Returns the log's descriptor, opening the file again if the program closed
// it or put another file in its place; or -errno.
int heaplog_writer_descriptor(heaplog_writer_t *writer);

// Adds to the log's count of lost events.
void heaplog_writer_add_lost(heaplog_writer_t *writer, uint64_t count);

// Makes the file at least `offset + size_bytes` long, with disk space, and maps
// that part. `populate`: faults its pages in. Returns 0 or -errno.
int heaplog_chunk_map(const heaplog_system_t *system, int descriptor,
                      uint64_t offset, size_t size_bytes, bool populate,
                      unsigned char **out_memory);

// Gives the stream a fresh chunk, unmapping its old one, and resets all that
// counts from chunk to chunk. Returns 0, or -errno and changes nothing.
int heaplog_chunk_take(heaplog_stream_t *stream, uint64_t time_ns);

// Unmaps the stream's chunk, if any.
void heaplog_chunk_drop(heaplog_stream_t *stream);

// Unmaps all chunks and all streams.
void heaplog_lanes_unmap(heaplog_writer_t *writer);

// In a forked child: unmaps all chunks and makes all streams unusable.
void heaplog_lanes_forget(heaplog_writer_t *writer);

// Appends the THREAD_END of the stream's thread, if its THREAD was written.
void heaplog_append_thread_end(heaplog_stream_t *stream, uint64_t time_ns);

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_WRITER_INTERNAL_H_
