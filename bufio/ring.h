// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// ring: a circular byte buffer between one producer and one consumer.
//
// For: threads or processes that hand bytes over without locks, and flight
// recorders, which keep the newest records. Not for: more than one producer or
// consumer (async_writer, or shmipc's channels).
//
//   bufio_ring_t ring;
//   int status = bufio_ring_open(&ring, NULL, 65536, NULL);
//   ...
//   bufio_ring_view_t view;                        // producer
//   if (bufio_ring_reserve(&ring, 100, &view)) {
//     fill(view.part[0].data, 100);  // One part: `open` mirrors.
//     bufio_ring_commit(&ring, 100);
//   }
//   if (bufio_ring_peek(&ring, &view)) {           // consumer
//     bufio_ring_consume(&ring, use(view.part[0].data, view.part[0].len));
//   }
//
// Views. A ring from `open` has its memory mapped twice in a row, so every view
// is one part. One in the caller's memory, or where the kernel refuses, has
// views of up to two parts; `bufio_ring_is_mirrored` tells.
//
// Threads: one producer and one consumer at the same time, each of which may be
// any thread. With `overwrite` the producer drops the oldest bytes, so it must
// hold still while somebody consumes.
// Processes: both map the same file or memory, each with a handle of its own. A
// producer killed at any instruction leaves what it committed. What a peer
// writes is checked before use: nonsense makes the ring return false and
// `bufio_ring_error` -EPROTO.
// A file that somebody cuts while it is mapped raises SIGBUS, which kills: give
// it permissions accordingly.
// fork: handles stay good in the child; there must still be one of each side.

#ifndef MY_ALLOC_BUFIO_RING_H_
#define MY_ALLOC_BUFIO_RING_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BUFIO_RING_MAGIC 0x676e69726f667562u  // "buforing"
#define BUFIO_RING_VERSION 1u
#define BUFIO_RING_HEADER_BYTES ((size_t)4096)
#define BUFIO_RING_CAPACITY_MIN ((size_t)64)
#define BUFIO_RING_CAPACITY_MAX ((size_t)1 << 30)

typedef struct bufio_ring_options {
  // A full ring drops its oldest bytes (records, if put as such) to make room.
  bool overwrite;
  // `bufio_ring_wait_...` may be used: commit and consume then look for a
  // sleeper, which costs a locked instruction each.
  bool blocking;
} bufio_ring_options_t;

// What is shared; at the start of the memory or file. All numbers in the
// machine's byte order.
typedef struct bufio_ring_shared {
  uint64_t magic;           // Offset 0; written last.
  uint32_t version;         // 8. Immutable, as all up to flags.
  uint32_t header_bytes;    // 12
  uint64_t capacity_bytes;  // 16. A power of two.
  uint32_t flags;           // 24. 1 overwrite, 2 blocking.
  uint32_t reserved;
  uint8_t padding0[32];
  // Bytes ever committed. Written by the producer only.
  uint64_t tail;  // 64
  uint32_t tail_closed;
  uint8_t padding1[52];
  // Bytes ever consumed. Written by the consumer only (by the producer too, if
  // it overwrites).
  uint64_t head;  // 128
  uint32_t head_closed;
  uint8_t padding2[52];
  // A sleeper raises `asleep` and waits for `signal` to change.
  uint32_t readable_asleep;  // 192. Raised by the consumer.
  uint32_t readable_signal;
  uint8_t padding3[56];
  uint32_t writable_asleep;  // 256. Raised by the producer.
  uint32_t writable_signal;
  uint8_t padding4[56];
} bufio_ring_shared_t;

// A handle, placed by the caller. Both sides may use the same one.
typedef struct bufio_ring {
  bufio_ring_shared_t *shared;  // Immutable, as all up to `error`.
  unsigned char *data;
  uint64_t capacity_bytes;
  size_t mapped_bytes;
  bool is_mirrored;
  bool overwrite;
  bool blocking;
  int error;  // By either side, once.
  // The side's own copy of the other side's counter, and of its own.
  uint64_t producer_head __attribute__((aligned(64)));
  uint64_t producer_tail;
  uint64_t consumer_tail __attribute__((aligned(64)));
  uint64_t consumer_head;
} bufio_ring_t;

typedef struct bufio_ring_part {
  unsigned char *data;
  size_t len;
} bufio_ring_part_t;

// The second part is empty unless the view crosses the end of an unmirrored
// ring.
typedef struct bufio_ring_view {
  bufio_ring_part_t part[2];
} bufio_ring_view_t;

// Makes an empty ring in the caller's memory, which may be shared: a header,
// then the largest power of two that fits. -EINVAL if that is too small or
// `memory` is not at a multiple of 64.
BUFIO_API int bufio_ring_init(
    bufio_ring_t *ring, void *memory, size_t memory_bytes,
    const bufio_ring_options_t *options) BUFIO_MUST_USE;

// Takes over the ring that is in the memory, with what it holds. -EPROTO if
// there is none, or its numbers do not fit.
BUFIO_API int bufio_ring_attach(bufio_ring_t *ring, void *memory,
                                size_t memory_bytes) BUFIO_MUST_USE;

// Opens the ring in a file, mapped shared: what it holds is still there, even
// after SIGKILL; an empty or new file becomes an empty ring. NULL: memory of no
// name. `capacity_bytes` is rounded up to a power of two of at least a page;
// for a file that has a ring it must be what it was made with, and so must the
// options. The file is locked by flock(2) meanwhile, so both sides may open a
// new one at once. Waits for that lock, for a second at most. Errors of
// open(2), mmap(2), fallocate(2); -EPROTO: not a ring, or another one, and
// nothing was changed; -EBUSY: somebody else has held the lock for a second.
BUFIO_API int bufio_ring_open(
    bufio_ring_t *ring, const char *path, size_t capacity_bytes,
    const bufio_ring_options_t *options) BUFIO_MUST_USE;

// Gives back what `open` mapped; the file stays. NULL and a zeroed ring are
// no-ops.
BUFIO_API void bufio_ring_close(bufio_ring_t *ring);

BUFIO_API bool bufio_ring_is_mirrored(const bufio_ring_t *ring);

// Returns 0, or -EPROTO once the other side has written nonsense.
BUFIO_API int bufio_ring_error(const bufio_ring_t *ring);

// ---- producer ----

// Stores a view of `len` writable bytes. False if there is no room, never when
// overwriting; or `len` exceeds the capacity.
BUFIO_API bool bufio_ring_reserve(bufio_ring_t *ring, size_t len,
                                  bufio_ring_view_t *out_view);

// Hands the first `len` bytes of what was reserved to the consumer.
BUFIO_API void bufio_ring_commit(bufio_ring_t *ring, size_t len);

// Reserves, copies, commits: all or nothing.
BUFIO_API bool bufio_ring_write(bufio_ring_t *ring, const void *bytes,
                                size_t len);

// Says that nothing will follow, and wakes the consumer.
BUFIO_API void bufio_ring_close_producer(bufio_ring_t *ring);

// ---- consumer ----

// Stores a view of everything that is there. False if that is nothing.
BUFIO_API bool bufio_ring_peek(bufio_ring_t *ring, bufio_ring_view_t *out_view);

// Gives back the first `len` bytes, at most what is there.
BUFIO_API void bufio_ring_consume(bufio_ring_t *ring, size_t len);

// Copies and consumes up to `len` bytes; returns how many.
BUFIO_API size_t bufio_ring_read(bufio_ring_t *ring, void *bytes, size_t len);

// Says that nothing will be taken any more, and wakes the producer.
BUFIO_API void bufio_ring_close_consumer(bufio_ring_t *ring);

// ---- records: bytes that stay together ----

// A ring has either plain bytes or records in it. A record takes 8 bytes more,
// rounded up to 8. False as `reserve`; when overwriting, whole records are
// dropped, the oldest first.
BUFIO_API bool bufio_ring_put_record(bufio_ring_t *ring, const void *bytes,
                                     size_t len);

// Stores a view of the oldest record. False if there is none.
BUFIO_API bool bufio_ring_peek_record(bufio_ring_t *ring,
                                      bufio_ring_view_t *out_view);

// Gives back the oldest record.
BUFIO_API void bufio_ring_consume_record(bufio_ring_t *ring);

// ---- waiting, for rings with the option ----

// Waits until `len` bytes are there: 0. -EPIPE: the producer has closed and
// fewer are. -ETIMEDOUT after `timeout_ms` (negative: never). -EINVAL without
// the option, or if `len` exceeds the capacity. -EPROTO. A peer that was killed
// cannot be told from a slow one: use a timeout.
BUFIO_API int bufio_ring_wait_readable(bufio_ring_t *ring, size_t len,
                                       int timeout_ms) BUFIO_MUST_USE;

// The same for `len` bytes of room and the consumer.
BUFIO_API int bufio_ring_wait_writable(bufio_ring_t *ring, size_t len,
                                       int timeout_ms) BUFIO_MUST_USE;

// Returns NULL, or a text naming the first broken invariant. For tests, while
// both sides hold still.
BUFIO_API const char *bufio_ring_check(const bufio_ring_t *ring);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_RING_H_
