// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Taking a chunk: the only place where streams meet.
//
// Chunk numbers are dealt out by a compare-and-swap on `chunk_count` in the
// file's own header page, which is mapped. So the count on disk is right at
// every instant, and a reader knows how long the file must be. What can fail
// (disk space, mapping) comes before the swap; a number is never burned.
// Two threads may both prepare chunk k; one swap wins and the loser's work was
// idempotent: it allocated space that was allocated, or wrote a zero into the
// chunk's spare bytes.
//
// The hard problem is order. A reader that meets the end of a cut file, or a
// damaged chunk, wants to know the earliest time at which an event can be
// missing, to deliver everything before it. Threads stamp events long before
// they come here (a thread can be stopped between the two), so chunk numbers
// and times need not agree. They are made to, without a lock, by a time that
// only grows, `floor_ns`. Taking chunk k is three steps in this order:
//
//   1. floor = max(floor, time of the first event); horizon(k) = floor
//   2. swap the count from k to k + 1
//   3. base(k) = floor; the stream's times are raised to at least base(k)
//
// Claim: no event in chunk j > k is earlier than horizon(k). Step 2 of j reads
// the count that step 2 of k or a later one wrote; these are read-modify-writes
// in one release sequence, with acquire and release, so step 1 of k happens
// before step 3 of j, and base(j) >= horizon(k). The raised times keep the
// causal order: `floor` is a time that somebody has already read off the clock.
//
// Nothing here relies on another thread making progress, so a signal handler,
// or a fork at any point, finds nothing held.

#include <errno.h>
#include <sys/mman.h>

#include "leakcheck/crc32c.h"
#include "leakcheck/heaplog_writer_internal.h"

// Linux 5.14; older headers lack it.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// How long to leave a full disk alone, in event time.
#define RETRY_NS UINT64_C(10000000)
#define INTERRUPTED_CALLS_MAX 1000

// Returns 0 when [offset, offset + size_bytes) of the file has disk space;
// 1 when it is in the file but may have none; or -errno.
static int grow_file(const heaplog_system_t *system, int descriptor,
                     uint64_t offset, uint64_t size_bytes) {
  // Asked first, as going beyond it raises SIGXFSZ.
  if (offset + size_bytes > system->file_size_limit()) {
    return -EFBIG;
  }
  int status = -EINTR;
  for (int i = 0; status == -EINTR && i < INTERRUPTED_CALLS_MAX; i++) {
    status = system->allocate(descriptor, offset, size_bytes);
  }
  if (status != -EOPNOTSUPP && status != -ENOSYS) {
    return status;
  }
  // No fallocate in this file system. One byte at the end makes the file long
  // enough; ftruncate could make it shorter when we are behind other threads.
  static const unsigned char kZero = 0;
  int64_t written = -EINTR;
  for (int i = 0; written == -EINTR && i < INTERRUPTED_CALLS_MAX; i++) {
    written = system->write(descriptor, &kZero, 1, offset + size_bytes - 1);
  }
  if (written < 0) {
    return (int)written;
  }
  return written == 1 ? 1 : -EIO;
}

int heaplog_chunk_map(const heaplog_system_t *system, int descriptor,
                      uint64_t offset, size_t size_bytes, bool populate,
                      unsigned char **out_memory) {
  int grown = grow_file(system, descriptor, offset, size_bytes);
  if (grown < 0) {
    return grown;
  }
  int status = -ENOMEM;
  unsigned char *memory =
      system->map_file(descriptor, offset, size_bytes, &status);
  if (memory == NULL) {
    return status;
  }
  if (populate || grown == 1) {
    // Faults all pages in at once, cheaper than one by one, and cheaper still
    // without reading around each (the file has nothing there). Where the space
    // is not certain it is also what turns a SIGBUS into an error.
    (void)system->advise(memory, size_bytes, MADV_RANDOM);
    status = system->advise(memory, size_bytes, MADV_POPULATE_WRITE);
    if (status != 0 && (grown == 1 || status == -EFAULT)) {
      system->unmap(memory, size_bytes);
      return status == -EFAULT ? -ENOSPC : -EOPNOTSUPP;
    }
  }
  *out_memory = memory;
  return 0;
}

// Raises `floor_ns` to `time_ns`; returns the greater of both.
static uint64_t raise_floor(heaplog_writer_t *writer, uint64_t time_ns) {
  // Relaxed: step 2 orders it for those who take later chunks.
  uint64_t floor_ns =
      atomic_load_explicit(&writer->floor_ns, memory_order_relaxed);
  while (floor_ns < time_ns &&
         !atomic_compare_exchange_weak_explicit(&writer->floor_ns, &floor_ns,
                                                time_ns, memory_order_relaxed,
                                                memory_order_relaxed)) {
  }
  return floor_ns < time_ns ? time_ns : floor_ns;
}

// Takes the next chunk number of the file and maps the chunk.
static int reserve(heaplog_writer_t *writer, bool populate, uint32_t *out_index,
                   unsigned char **out_chunk) {
  _Atomic uint64_t *count_word =
      (_Atomic uint64_t *)&writer->header->chunk_count;
  int descriptor = heaplog_writer_descriptor(writer);
  if (descriptor < 0) {
    return descriptor;
  }
  for (;;) {
    // Acquire: see the top. Pairs with the swap below in other threads.
    uint64_t word = atomic_load_explicit(count_word, memory_order_acquire);
    uint32_t index = (uint32_t)word;
    if (word != heaplog_counter_word(index)) {
      return -EPROTO;  // The program wrote over our page.
    }
    if (index == UINT32_MAX) {
      return -EFBIG;
    }
    uint64_t offset =
        writer->header_bytes + (uint64_t)index * HEAPLOG_CHUNK_BYTES;
    int status = heaplog_chunk_map(writer->system, descriptor, offset,
                                   HEAPLOG_CHUNK_BYTES, populate, out_chunk);
    if (status != 0) {
      return status;
    }
    // Acquire and release: see the top. Pairs with itself in other threads.
    if (atomic_compare_exchange_strong_explicit(
            count_word, &word, heaplog_counter_word(index + 1),
            memory_order_acq_rel, memory_order_relaxed)) {
      *out_index = index;
      return 0;
    }
    writer->system->unmap(*out_chunk, HEAPLOG_CHUNK_BYTES);
  }
}

static _Atomic(unsigned char *) *inherited_chunk(heaplog_stream_t *stream) {
  heaplog_lane_block_t *block = atomic_load_explicit(
      &stream->writer->blocks[stream->lane / HEAPLOG_LANES_PER_BLOCK],
      memory_order_relaxed);  // Acquired when the stream was opened.
  return &block->chunks[stream->lane % HEAPLOG_LANES_PER_BLOCK];
}

void heaplog_chunk_drop(heaplog_stream_t *stream) {
  if (stream->chunk == NULL) {
    return;
  }
  // A child forked between these lines must not unmap what is not there any
  // more. Relaxed: the child's only thread is a copy of the one that forked.
  atomic_store_explicit(inherited_chunk(stream), NULL, memory_order_relaxed);
  stream->writer->system->unmap(stream->chunk, HEAPLOG_CHUNK_BYTES);
  stream->chunk = NULL;
  stream->used = 0;
}

int heaplog_chunk_take(heaplog_stream_t *stream, uint64_t time_ns) {
  heaplog_writer_t *writer = stream->writer;
  // Relaxed: a hint.
  if (time_ns < atomic_load_explicit(&writer->retry_ns, memory_order_relaxed)) {
    return -EAGAIN;
  }
  uint64_t horizon_ns = raise_floor(writer, time_ns);
  uint32_t index = 0;
  unsigned char *chunk = NULL;
  // A thread's first chunk may be all it ever needs: do not dirty 64 KiB.
  int status = reserve(writer, stream->sequence > 0, &index, &chunk);
  if (status != 0) {
    atomic_store_explicit(&writer->retry_ns, time_ns + RETRY_NS,
                          memory_order_relaxed);
    int none = 0;
    atomic_compare_exchange_strong_explicit(&writer->error, &none, status,
                                            memory_order_relaxed,
                                            memory_order_relaxed);
    return status;
  }
  atomic_store_explicit(&writer->retry_ns, 0, memory_order_relaxed);
  // Relaxed: the acquire in reserve() came before.
  uint64_t base_ns =
      atomic_load_explicit(&writer->floor_ns, memory_order_relaxed);
  if (base_ns < stream->last_time_ns) {
    base_ns = stream->last_time_ns;
  }
  heaplog_chunk_drop(stream);
  heaplog_chunk_header_t *header = (heaplog_chunk_header_t *)chunk;
  header->index = index;
  header->lane = stream->lane;
  header->sequence = stream->sequence++;
  header->horizon_ns = horizon_ns - writer->start_monotonic_ns;
  header->base_ns = base_ns - writer->start_monotonic_ns;
  // The commit word stays 0, "not begun", until the first record's.
  stream->chunk = chunk;
  stream->used = 0;
  stream->crc_state = heaplog_crc32c_extend(
      stream->hardware_crc, HEAPLOG_CRC32C_INITIAL_STATE,
      chunk + HEAPLOG_CHUNK_CRC_OFFSET, HEAPLOG_CHUNK_CRC_BYTES);
  header->header_crc = heaplog_crc32c_value(stream->crc_state);
  stream->announced = false;
  stream->last_time_ns = base_ns;
  stream->last_address = 0;
  stream->last_size_bytes = 0;
  stream->last_slack_bytes = 0;
  stream->last_stack_id = 0;
  stream->last_stack_node = 0;
  stream->last_instruction = 0;
  atomic_store_explicit(inherited_chunk(stream), chunk, memory_order_relaxed);
  return 0;
}
