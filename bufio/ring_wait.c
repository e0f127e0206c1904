// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Sleeping until the other side has moved its counter.
//
//   sleeper                              waker
//   s = signal                           counter = new       (commit, consume)
//   exchange(asleep, 1)                  if fetch_or(asleep, 0):
//   if counter is good: asleep = 0, go     asleep = 0
//   FUTEX_WAIT(signal, s)                  signal += 1
//   again                                  FUTEX_WAKE(signal)
//
// Both touch `asleep` by a read-modify-write, and those have an order. If the
// sleeper's is first, the waker sees it. If the waker's is first, the sleeper's
// reads what it wrote, so the sleeper sees the counter that was stored before
// it. (A plain store and load on either side would not do: each could pass the
// other.) If the waker saw `asleep`, it changes `signal` after the sleeper has
// read it, so a FUTEX_WAIT that comes late returns at once. ring_model_test.cc
// walks every interleaving, with store buffers, and shows that with plain
// accesses a wakeup is lost.
//
// The futexes are not private: the other side may be another process.

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bufio/ring_internal.h"

static void futex_wake(uint32_t *word) {
  int saved_errno = errno;
  syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
  errno = saved_errno;
}

// Until `deadline` of CLOCK_MONOTONIC; NULL: for ever. 0, or -ETIMEDOUT.
static int futex_wait(uint32_t *word, uint32_t expected,
                      const struct timespec *deadline) {
  int saved_errno = errno;
  long result = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, deadline,
                        NULL, FUTEX_BITSET_MATCH_ANY);
  int status = result < 0 && errno == ETIMEDOUT ? -ETIMEDOUT : 0;
  errno = saved_errno;
  return status;
}

static void signal_sleeper(uint32_t *asleep, uint32_t *signal) {
  __atomic_store_n(asleep, 0, __ATOMIC_RELAXED);
  // Release: the sleeper that sees the new value looks at the counter again.
  __atomic_fetch_add(signal, 1, __ATOMIC_RELEASE);
  futex_wake(signal);
}

void bufio_ring_wake(uint32_t *asleep, uint32_t *signal) {
  // Acquire and release: pairs with the exchange of `wait_for`, see above.
  if (__atomic_fetch_or(asleep, 0, __ATOMIC_ACQ_REL) != 0) {
    signal_sleeper(asleep, signal);
  }
}

// What one direction waits for.
typedef struct direction {
  uint64_t (*amount)(bufio_ring_t *ring);
  uint32_t *peer_closed;
  uint32_t *asleep;
  uint32_t *signal;
} direction_t;

// 0: there is enough, 1: not yet, else the error.
static int look(bufio_ring_t *ring, const direction_t *direction, size_t len) {
  // Acquire, and before the amount: what was committed before the close is
  // counted.
  bool is_closed =
      __atomic_load_n(direction->peer_closed, __ATOMIC_ACQUIRE) != 0;
  if (direction->amount(ring) >= len) {
    return 0;
  }
  if (bufio_ring_error(ring) != 0) {
    return -EPROTO;
  }
  return is_closed ? -EPIPE : 1;
}

static struct timespec deadline_after(int timeout_ms) {
  struct timespec deadline;
  clock_gettime(CLOCK_MONOTONIC, &deadline);
  deadline.tv_sec += timeout_ms / 1000;
  deadline.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
  if (deadline.tv_nsec >= 1000000000) {
    deadline.tv_nsec -= 1000000000;
    deadline.tv_sec++;
  }
  return deadline;
}

static int wait_for(bufio_ring_t *ring, const direction_t *direction,
                    size_t len, int timeout_ms) {
  if (!ring->blocking || len > ring->capacity_bytes) {
    return -EINVAL;
  }
  struct timespec deadline = {0, 0};
  if (timeout_ms >= 0) {
    deadline = deadline_after(timeout_ms);
  }
  for (;;) {
    int status = look(ring, direction, len);
    if (status <= 0) {
      return status;
    }
    // Acquire: pairs with the release of `signal_sleeper`.
    uint32_t seen = __atomic_load_n(direction->signal, __ATOMIC_ACQUIRE);
    // Acquire and release: pairs with the fetch_or of `bufio_ring_wake`.
    __atomic_exchange_n(direction->asleep, 1, __ATOMIC_ACQ_REL);
    status = look(ring, direction, len);
    int slept = 0;
    if (status > 0) {
      slept = futex_wait(direction->signal, seen,
                         timeout_ms >= 0 ? &deadline : NULL);
    }
    __atomic_store_n(direction->asleep, 0, __ATOMIC_RELAXED);
    if (status <= 0) {
      return status;
    }
    if (slept < 0) {
      status = look(ring, direction, len);
      return status > 0 ? -ETIMEDOUT : status;
    }
  }
}

int bufio_ring_wait_readable(bufio_ring_t *ring, size_t len, int timeout_ms) {
  bufio_ring_shared_t *shared = ring->shared;
  direction_t direction = {bufio_ring_available, &shared->tail_closed,
                           &shared->readable_asleep, &shared->readable_signal};
  return wait_for(ring, &direction, len, timeout_ms);
}

int bufio_ring_wait_writable(bufio_ring_t *ring, size_t len, int timeout_ms) {
  bufio_ring_shared_t *shared = ring->shared;
  direction_t direction = {bufio_ring_room, &shared->head_closed,
                           &shared->writable_asleep, &shared->writable_signal};
  return wait_for(ring, &direction, len, timeout_ms);
}

void bufio_ring_close_producer(bufio_ring_t *ring) {
  // Release: what was committed before is seen by whoever sees this.
  __atomic_store_n(&ring->shared->tail_closed, 1, __ATOMIC_RELEASE);
  signal_sleeper(&ring->shared->readable_asleep,
                 &ring->shared->readable_signal);
}

void bufio_ring_close_consumer(bufio_ring_t *ring) {
  __atomic_store_n(&ring->shared->head_closed, 1, __ATOMIC_RELEASE);
  signal_sleeper(&ring->shared->writable_asleep,
                 &ring->shared->writable_signal);
}
