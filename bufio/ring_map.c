// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where a ring's memory comes from.
//
//   base                + 4096             + capacity          + 2 * capacity
//   | header            | data             | the same data     |
//     file offset 0       4096               4096 again
//
// The addresses are reserved first and then mapped over, so nothing else can
// get in between. Where the second mapping fails the ring works without.
//
// A file is trusted as far as fstat goes: its length must be exactly what the
// header says, every number in range; only then is it used.

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/ring_internal.h"

#define LOCK_ROUNDS 1000

static const bufio_ring_options_t default_options;

static uint32_t flags_of(const bufio_ring_options_t *options) {
  return (options->overwrite ? BUFIO_RING_OVERWRITE : 0) |
         (options->blocking ? BUFIO_RING_BLOCKING : 0);
}

// A file that was just made, or whose maker died before the magic: the numbers
// are there or not yet. What else begins with eight zeros is somebody's.
static bool is_unfinished(const bufio_ring_shared_t *shared,
                          uint64_t capacity_bytes, uint32_t flags) {
  static const unsigned char zeros[BUFIO_RING_HEADER_BYTES];
  bufio_ring_shared_t seen;
  memcpy(&seen, shared, sizeof(seen));
  if ((seen.version != 0 && seen.version != BUFIO_RING_VERSION) ||
      (seen.header_bytes != 0 &&
       seen.header_bytes != BUFIO_RING_HEADER_BYTES) ||
      (seen.capacity_bytes != 0 && seen.capacity_bytes != capacity_bytes) ||
      (seen.flags != 0 && seen.flags != flags)) {
    return false;
  }
  seen.version = 0;
  seen.header_bytes = 0;
  seen.capacity_bytes = 0;
  seen.flags = 0;
  return memcmp(&seen, zeros, sizeof(seen)) == 0 &&
         memcmp(shared + 1, zeros, sizeof(zeros) - sizeof(seen)) == 0;
}

static void make_header(bufio_ring_shared_t *shared, uint64_t capacity_bytes,
                        uint32_t flags) {
  memset(shared, 0, sizeof(*shared));
  shared->version = BUFIO_RING_VERSION;
  shared->header_bytes = BUFIO_RING_HEADER_BYTES;
  shared->capacity_bytes = capacity_bytes;
  shared->flags = flags;
  // Release: whoever sees the magic sees the rest.
  __atomic_store_n(&shared->magic, BUFIO_RING_MAGIC, __ATOMIC_RELEASE);
}

// Takes what the header says, if it fits `total_bytes`.
static int take_header(bufio_ring_t *ring, bufio_ring_shared_t *shared,
                       uint64_t total_bytes) {
  // Each number is read once: another process may be writing.
  uint64_t magic = __atomic_load_n(&shared->magic, __ATOMIC_ACQUIRE);
  uint64_t capacity =
      __atomic_load_n(&shared->capacity_bytes, __ATOMIC_RELAXED);
  uint64_t tail = __atomic_load_n(&shared->tail, __ATOMIC_ACQUIRE);
  uint64_t head = __atomic_load_n(&shared->head, __ATOMIC_ACQUIRE);
  uint32_t flags = __atomic_load_n(&shared->flags, __ATOMIC_RELAXED);
  if (magic != BUFIO_RING_MAGIC || shared->version != BUFIO_RING_VERSION ||
      shared->header_bytes != BUFIO_RING_HEADER_BYTES ||
      capacity < BUFIO_RING_CAPACITY_MIN ||
      capacity > BUFIO_RING_CAPACITY_MAX || (capacity & (capacity - 1)) != 0 ||
      capacity > total_bytes - BUFIO_RING_HEADER_BYTES ||
      flags > (BUFIO_RING_OVERWRITE | BUFIO_RING_BLOCKING)) {
    return -EPROTO;
  }
  // A tail from before a head that moved on meanwhile is smaller: no error.
  if (tail - head > capacity && head - tail > capacity) {
    return -EPROTO;
  }
  ring->shared = shared;
  ring->data = (unsigned char *)shared + BUFIO_RING_HEADER_BYTES;
  ring->capacity_bytes = capacity;
  ring->overwrite = (flags & BUFIO_RING_OVERWRITE) != 0;
  ring->blocking = (flags & BUFIO_RING_BLOCKING) != 0;
  // What each side knows of the other's counter says "full" and "empty", so the
  // first call looks at the counter itself, and refuses nonsense.
  ring->producer_tail = tail;
  ring->producer_head = tail - capacity;
  ring->consumer_tail = head;
  ring->consumer_head = head;
  return 0;
}

int bufio_ring_attach(bufio_ring_t *ring, void *memory, size_t memory_bytes) {
  memset(ring, 0, sizeof(*ring));
  if ((uintptr_t)memory % 64 != 0 ||
      memory_bytes < BUFIO_RING_HEADER_BYTES + BUFIO_RING_CAPACITY_MIN) {
    return -EPROTO;
  }
  return take_header(ring, memory, memory_bytes);
}

int bufio_ring_init(bufio_ring_t *ring, void *memory, size_t memory_bytes,
                    const bufio_ring_options_t *options) {
  options = options != NULL ? options : &default_options;
  memset(ring, 0, sizeof(*ring));
  if ((uintptr_t)memory % 64 != 0 ||
      memory_bytes < BUFIO_RING_HEADER_BYTES + BUFIO_RING_CAPACITY_MIN) {
    return -EINVAL;
  }
  uint64_t capacity = BUFIO_RING_CAPACITY_MIN;
  while (capacity < BUFIO_RING_CAPACITY_MAX &&
         2 * capacity <= memory_bytes - BUFIO_RING_HEADER_BYTES) {
    capacity *= 2;
  }
  make_header(memory, capacity, flags_of(options));
  return take_header(ring, memory, memory_bytes);
}

// Maps header and data, and the data again if that can be had.
static int map_file(bufio_ring_t *ring, int descriptor, size_t capacity_bytes) {
  const int both = PROT_READ | PROT_WRITE;
  size_t once = BUFIO_RING_HEADER_BYTES + capacity_bytes;
  size_t total = once + capacity_bytes;
  int status = 0;
  unsigned char *base = bufio_system->map(
      NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
      0, &status);
  if (base == NULL) {
    return status;
  }
  if (bufio_system->map(base, once, both, MAP_SHARED | MAP_FIXED, descriptor, 0,
                        &status) == NULL) {
    (void)bufio_system->unmap(base, total);
    return status;
  }
  int mirror_status = 0;
  ring->is_mirrored =
      bufio_system->map(base + once, capacity_bytes, both,
                        MAP_SHARED | MAP_FIXED, descriptor,
                        BUFIO_RING_HEADER_BYTES, &mirror_status) != NULL;
  ring->shared = (bufio_ring_shared_t *)base;
  ring->mapped_bytes = total;
  return 0;
}

static int open_memory(void) {
  int saved_errno = errno;
  int descriptor = memfd_create("bufio_ring", MFD_CLOEXEC);
  int status = descriptor < 0 ? -errno : descriptor;
  errno = saved_errno;
  return status;
}

static int open_file(const char *path) {
  if (path == NULL) {
    return open_memory();
  }
  return bufio_io_open(path, O_RDWR | O_CREAT | O_NONBLOCK, 0600);
}

// Sees to it that the file has the right length, allocated.
static int size_file(int descriptor, size_t capacity_bytes) {
  struct stat stat;
  int status = bufio_system->stat(descriptor, &stat);
  if (status < 0) {
    return status;
  }
  size_t size = BUFIO_RING_HEADER_BYTES + capacity_bytes;
  if (stat.st_size != 0) {
    return S_ISREG(stat.st_mode) && (uint64_t)stat.st_size == size ? 0
                                                                   : -EPROTO;
  }
  return bufio_io_allocate(descriptor, 0, size);
}

static size_t round_capacity(size_t capacity_bytes) {
  size_t rounded = 4096;
  while (rounded < capacity_bytes && rounded < BUFIO_RING_CAPACITY_MAX) {
    rounded *= 2;
  }
  return rounded < capacity_bytes ? 0 : rounded;
}

static int start_file(bufio_ring_t *ring, size_t capacity_bytes,
                      uint32_t flags) {
  bufio_ring_shared_t *shared = ring->shared;
  if (__atomic_load_n(&shared->magic, __ATOMIC_ACQUIRE) == 0) {
    if (!is_unfinished(shared, capacity_bytes, flags)) {
      return -EPROTO;
    }
    make_header(shared, capacity_bytes, flags);
  }
  int status =
      take_header(ring, shared, BUFIO_RING_HEADER_BYTES + capacity_bytes);
  if (status == 0 &&
      (ring->capacity_bytes != capacity_bytes || shared->flags != flags)) {
    status = -EPROTO;
  }
  return status;
}

// Both sides may open a new file at once: only one may make the ring. The lock
// is held for some microseconds, so whoever has it for a second is a stranger.
static int lock_file(int descriptor) {
  const struct timespec pause = {.tv_sec = 0, .tv_nsec = 1000000};
  for (int i = 0; i < LOCK_ROUNDS; i++) {
    int status = bufio_system->lock(descriptor, LOCK_EX);
    if (status != -EWOULDBLOCK && status != -EINTR) {
      // Not every file system has locks.
      return status == -ENOLCK || status == -ENOSYS ? 0 : status;
    }
    nanosleep(&pause, NULL);
  }
  return -EBUSY;
}

int bufio_ring_open(bufio_ring_t *ring, const char *path, size_t capacity_bytes,
                    const bufio_ring_options_t *options) {
  options = options != NULL ? options : &default_options;
  memset(ring, 0, sizeof(*ring));
  capacity_bytes = round_capacity(capacity_bytes);
  if (capacity_bytes == 0) {
    return -EINVAL;
  }
  int descriptor = open_file(path);
  if (descriptor < 0) {
    return descriptor;
  }
  int status = path != NULL ? lock_file(descriptor) : 0;
  if (status == 0) {
    status = size_file(descriptor, capacity_bytes);
  }
  if (status == 0) {
    status = map_file(ring, descriptor, capacity_bytes);
  }
  if (status == 0) {
    status = start_file(ring, capacity_bytes, flags_of(options));
  }
  // The mapping keeps the open file, and that its lock.
  (void)bufio_system->lock(descriptor, LOCK_UN);
  (void)bufio_system->close(descriptor);
  if (status < 0) {
    bufio_ring_close(ring);
  }
  return status;
}

void bufio_ring_close(bufio_ring_t *ring) {
  if (ring == NULL) {
    return;
  }
  if (ring->mapped_bytes != 0) {
    (void)bufio_system->unmap(ring->shared, ring->mapped_bytes);
  }
  memset(ring, 0, sizeof(*ring));
}
