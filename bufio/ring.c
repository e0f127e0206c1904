// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Two counters that only grow; each is written by one side.
//
//   head: bytes ever consumed     tail: bytes ever committed
//
//   data   |....|#########|.......|          byte o is at data[o mod capacity]
//               ^head     ^tail
//
// The producer writes bytes, then stores tail with release; the consumer loads
// tail with acquire, then reads them: so it never sees a byte that is not there
// yet. The other way round for head: the producer never writes over a byte that
// is still being read. Each side keeps a copy of the other's counter and looks
// at the real one only when the copy says "full" or "empty", so in the steady
// state the counters' cache lines do not travel once an operation.
//
// Sleeping (ring_wait.c) adds one flag and one signal word a direction.
//
// Invariants:
// 1. head <= tail <= head + capacity.
// 2. Bytes [head, tail) are what the producer committed.
// 3. With records, [head, tail) is a sequence of whole ones, at every
//    instruction: dropping moves head past a record before its bytes are
//    written over, and tail moves once a record.
//
// The counters come from memory that another process may write, so a tail that
// breaks invariant 1 is an error, not an index.

#include "bufio/ring.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "bufio/ring_internal.h"

#define RECORD_ALIGN 8u

static_assert(offsetof(bufio_ring_shared_t, tail) == 64, "layout of version 1");
static_assert(offsetof(bufio_ring_shared_t, head) == 128,
              "sides do not share a cache line");
static_assert(offsetof(bufio_ring_shared_t, readable_asleep) == 192,
              "layout of version 1");
static_assert(sizeof(bufio_ring_shared_t) <= BUFIO_RING_HEADER_BYTES,
              "the header fits its page");

// In front of each record.
typedef struct record_header {
  uint32_t len;
  uint32_t check;  // ~len: what is no record is noticed.
} record_header_t;

static_assert(sizeof(record_header_t) == RECORD_ALIGN,
              "a header never crosses the end of the data");

static void note_nonsense(bufio_ring_t *ring) {
  // Relaxed: a verdict, it publishes nothing.
  __atomic_store_n(&ring->error, -EPROTO, __ATOMIC_RELAXED);
}

int bufio_ring_error(const bufio_ring_t *ring) {
  return __atomic_load_n(&ring->error, __ATOMIC_RELAXED);
}

bool bufio_ring_is_mirrored(const bufio_ring_t *ring) {
  return ring->is_mirrored;
}

static void make_view(const bufio_ring_t *ring, uint64_t offset, uint64_t len,
                      bufio_ring_view_t *out_view) {
  uint64_t place = offset & (ring->capacity_bytes - 1);
  uint64_t first = ring->capacity_bytes - place;
  if (ring->is_mirrored || first > len) {
    first = len;
  }
  out_view->part[0].data = ring->data + place;
  out_view->part[0].len = (size_t)first;
  out_view->part[1].data = ring->data;
  out_view->part[1].len = (size_t)(len - first);
}

static void copy_in(const bufio_ring_view_t *view, const void *bytes,
                    size_t len) {
  size_t first = len < view->part[0].len ? len : view->part[0].len;
  if (first != 0) {
    memcpy(view->part[0].data, bytes, first);
  }
  if (len != first) {
    memcpy(view->part[1].data, (const unsigned char *)bytes + first,
           len - first);
  }
}

static void copy_out(const bufio_ring_view_t *view, void *bytes, size_t len) {
  size_t first = len < view->part[0].len ? len : view->part[0].len;
  if (first != 0) {
    memcpy(bytes, view->part[0].data, first);
  }
  if (len != first) {
    memcpy((unsigned char *)bytes + first, view->part[1].data, len - first);
  }
}

// ---- producer ----

uint64_t bufio_ring_room(bufio_ring_t *ring) {
  // Acquire: pairs with the release of `consume`; the consumer is done with
  // what is before head.
  ring->producer_head = __atomic_load_n(&ring->shared->head, __ATOMIC_ACQUIRE);
  uint64_t used = ring->producer_tail - ring->producer_head;
  if (used > ring->capacity_bytes) {
    note_nonsense(ring);
    return 0;
  }
  return ring->capacity_bytes - used;
}

static bool has_room(bufio_ring_t *ring, size_t len) {
  uint64_t used = ring->producer_tail - ring->producer_head;
  return len <= ring->capacity_bytes - used || len <= bufio_ring_room(ring);
}

// Overwriting: the producer plays consumer.
static void drop(bufio_ring_t *ring, uint64_t head) {
  ring->producer_head = head;
  __atomic_store_n(&ring->shared->head, head, __ATOMIC_RELEASE);
  // Whoever looks at the ring after this process was killed must see head move
  // before the bytes behind it change. A killed process stops between two
  // instructions, so only the compiler has to be kept from reordering.
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

bool bufio_ring_reserve(bufio_ring_t *ring, size_t len,
                        bufio_ring_view_t *out_view) {
  if (len > ring->capacity_bytes || bufio_ring_error(ring) != 0) {
    return false;
  }
  if (!has_room(ring, len)) {
    if (!ring->overwrite || bufio_ring_error(ring) != 0) {
      return false;
    }
    drop(ring, ring->producer_tail + len - ring->capacity_bytes);
  }
  make_view(ring, ring->producer_tail, len, out_view);
  return true;
}

void bufio_ring_commit(bufio_ring_t *ring, size_t len) {
  assert(len <= ring->capacity_bytes);
  ring->producer_tail += len;
  // Release: pairs with the acquire in `bufio_ring_available`.
  __atomic_store_n(&ring->shared->tail, ring->producer_tail, __ATOMIC_RELEASE);
  if (ring->blocking) {
    bufio_ring_wake(&ring->shared->readable_asleep,
                    &ring->shared->readable_signal);
  }
}

bool bufio_ring_write(bufio_ring_t *ring, const void *bytes, size_t len) {
  bufio_ring_view_t view;
  if (!bufio_ring_reserve(ring, len, &view)) {
    return false;
  }
  copy_in(&view, bytes, len);
  bufio_ring_commit(ring, len);
  return true;
}

// ---- consumer ----

uint64_t bufio_ring_available(bufio_ring_t *ring) {
  // Acquire: pairs with the release of `commit`; what is before tail is there.
  ring->consumer_tail = __atomic_load_n(&ring->shared->tail, __ATOMIC_ACQUIRE);
  if (ring->overwrite) {
    // The producer moved it; it holds still now.
    ring->consumer_head =
        __atomic_load_n(&ring->shared->head, __ATOMIC_ACQUIRE);
  }
  uint64_t available = ring->consumer_tail - ring->consumer_head;
  if (available > ring->capacity_bytes) {
    note_nonsense(ring);
    ring->consumer_tail = ring->consumer_head;
    return 0;
  }
  return available;
}

bool bufio_ring_peek(bufio_ring_t *ring, bufio_ring_view_t *out_view) {
  uint64_t available = bufio_ring_available(ring);
  if (available == 0 || bufio_ring_error(ring) != 0) {
    return false;
  }
  make_view(ring, ring->consumer_head, available, out_view);
  return true;
}

void bufio_ring_consume(bufio_ring_t *ring, size_t len) {
  uint64_t available = ring->consumer_tail - ring->consumer_head;
  if (len > available) {
    available = bufio_ring_available(ring);
  }
  ring->consumer_head += len < available ? len : available;
  // Release: pairs with the acquire of `bufio_ring_room`; we are done reading.
  __atomic_store_n(&ring->shared->head, ring->consumer_head, __ATOMIC_RELEASE);
  if (ring->overwrite) {
    ring->producer_head = ring->consumer_head;
  }
  if (ring->blocking) {
    bufio_ring_wake(&ring->shared->writable_asleep,
                    &ring->shared->writable_signal);
  }
}

size_t bufio_ring_read(bufio_ring_t *ring, void *bytes, size_t len) {
  bufio_ring_view_t view;
  if (len == 0 || !bufio_ring_peek(ring, &view)) {
    return 0;
  }
  size_t available = view.part[0].len + view.part[1].len;
  size_t count = len < available ? len : available;
  copy_out(&view, bytes, count);
  bufio_ring_consume(ring, count);
  return count;
}

// ---- records ----

// What a record takes; false if none has that length.
static bool frame_bytes(const bufio_ring_t *ring, size_t len,
                        uint64_t *out_bytes) {
  if (len > ring->capacity_bytes - sizeof(record_header_t)) {
    return false;
  }
  *out_bytes = (sizeof(record_header_t) + len + RECORD_ALIGN - 1) &
               ~(uint64_t)(RECORD_ALIGN - 1);
  return *out_bytes <= ring->capacity_bytes;
}

// The record at `offset`, of which [offset, end) is there. False: none is.
static bool read_record(bufio_ring_t *ring, uint64_t offset, uint64_t end,
                        size_t *out_len, uint64_t *out_frame) {
  record_header_t header;
  bufio_ring_view_t view;
  if (end - offset < sizeof(header)) {
    return false;
  }
  make_view(ring, offset, sizeof(header), &view);
  copy_out(&view, &header, sizeof(header));
  uint64_t frame = 0;
  if (header.check != ~header.len || !frame_bytes(ring, header.len, &frame) ||
      frame > end - offset) {
    note_nonsense(ring);
    return false;
  }
  *out_len = header.len;
  *out_frame = frame;
  return true;
}

// Drops whole records until `frame` bytes fit.
static bool drop_records(bufio_ring_t *ring, uint64_t frame) {
  uint64_t head = ring->producer_head;
  while (ring->producer_tail - head + frame > ring->capacity_bytes) {
    size_t len = 0;
    uint64_t dropped = 0;
    if (!read_record(ring, head, ring->producer_tail, &len, &dropped)) {
      return false;
    }
    head += dropped;
  }
  drop(ring, head);
  return true;
}

bool bufio_ring_put_record(bufio_ring_t *ring, const void *bytes, size_t len) {
  uint64_t frame = 0;
  if (!frame_bytes(ring, len, &frame)) {
    return false;
  }
  if (!has_room(ring, (size_t)frame) &&
      (!ring->overwrite || bufio_ring_error(ring) != 0 ||
       !drop_records(ring, frame))) {
    return false;
  }
  bufio_ring_view_t view;
  if (!bufio_ring_reserve(ring, (size_t)frame, &view)) {
    return false;
  }
  record_header_t header = {.len = (uint32_t)len, .check = ~(uint32_t)len};
  copy_in(&view, &header, sizeof(header));
  make_view(ring, ring->producer_tail + sizeof(header), frame - sizeof(header),
            &view);
  copy_in(&view, bytes, len);
  bufio_ring_commit(ring, (size_t)frame);
  return true;
}

bool bufio_ring_peek_record(bufio_ring_t *ring, bufio_ring_view_t *out_view) {
  bufio_ring_available(ring);
  size_t len = 0;
  uint64_t frame = 0;
  if (bufio_ring_error(ring) != 0 ||
      !read_record(ring, ring->consumer_head, ring->consumer_tail, &len,
                   &frame)) {
    return false;
  }
  make_view(ring, ring->consumer_head + sizeof(record_header_t), len, out_view);
  return true;
}

void bufio_ring_consume_record(bufio_ring_t *ring) {
  bufio_ring_available(ring);
  size_t len = 0;
  uint64_t frame = 0;
  if (read_record(ring, ring->consumer_head, ring->consumer_tail, &len,
                  &frame)) {
    bufio_ring_consume(ring, (size_t)frame);
  }
}

const char *bufio_ring_check(const bufio_ring_t *ring) {
  if (ring->shared == NULL) {
    return NULL;
  }
  uint64_t head = ring->shared->head;
  uint64_t tail = ring->shared->tail;
  if (tail - head > ring->capacity_bytes) {
    return "head <= tail <= head + capacity";
  }
  if ((ring->capacity_bytes & (ring->capacity_bytes - 1)) != 0) {
    return "the capacity is a power of two";
  }
  if (ring->is_mirrored &&
      memcmp(ring->data, ring->data + ring->capacity_bytes, 64) != 0) {
    return "the mirror shows the same memory";
  }
  return NULL;
}
