// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A ring (ring.h) as the queue: producers are one at a time by the lock, the
// flusher is the consumer.
//
//   producers --lock--> | ring: queued bytes | --flusher, no lock--> write(2)
//
// The flusher peeks everything that is there, writes it without the lock, and
// consumes exactly what write(2) took. So the ring is at every moment what the
// kernel does not have, and on an error the flusher only has to stop.
//
// Records stay together because a producer that has to wait for room keeps its
// `turn`: others queue behind it. A record larger than the queue goes in piece
// by piece in one turn.
//
// Invariants:
// 1. Bytes [handed_over, accepted) are in the ring.
// 2. The flusher makes no call while an error is sticky.
//
// Locks: `lock` only. Everything but the ring's bytes is guarded by it.

#include "bufio/async_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bufio/fork_guard.h"
#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/lock_guard.h"
#include "bufio/ring.h"

#define QUEUE_BYTES ((size_t)1 << 20)
#define BATCH_BYTES ((size_t)65536)
#define DELAY_MS 10u

struct bufio_async_writer {
  pthread_mutex_t lock;
  pthread_cond_t work;      // For the flusher: there is something to do.
  pthread_cond_t progress;  // For everybody else: bytes went, or an error came.
  bufio_ring_t ring;
  uint64_t accepted;      // Bytes ever.
  uint64_t handed_over;   // Bytes ever.
  size_t batch_bytes;     // Immutable.
  unsigned int delay_ms;  // Immutable.
  uint64_t num_flushing;  // Who does not want to wait for a batch.
  int descriptor;         // Immutable.
  int error;
  bool error_is_final;
  bool has_turn;  // A producer is waiting in the middle of its record.
  bool is_syncing;
  bool is_closing;
  bool owns_descriptor;
  bool is_foreign;  // Written in the child of a fork, before it runs.
  pthread_t flusher;
  bufio_fork_node_t fork_node;
};

static const bufio_async_writer_options_t default_options;

static void async_in_child(bufio_fork_node_t *node) {
  ((bufio_async_writer_t *)((unsigned char *)node -
                            offsetof(bufio_async_writer_t, fork_node)))
      ->is_foreign = true;
}

static uint64_t queued(const bufio_async_writer_t *writer) {
  return writer->accepted - writer->handed_over;
}

// ---- the flusher ----

// One call, EINTR and EAGAIN dealt with.
static int64_t write_some(int descriptor, const void *bytes, size_t len) {
  for (;;) {
    int64_t count = bufio_system->write(descriptor, bytes, len);
    if (count == -EINTR) {
      continue;
    }
    if (count == -EAGAIN) {
      int status = bufio_system->wait(descriptor, POLLOUT);
      if (status < 0 && status != -EINTR) {
        return status;
      }
      continue;
    }
    return count == 0 || count > (int64_t)len ? -EIO : count;
  }
}

static struct timespec after_ms(unsigned int delay_ms) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  time.tv_sec += delay_ms / 1000;
  time.tv_nsec += (long)(delay_ms % 1000) * 1000000;
  if (time.tv_nsec >= 1000000000) {
    time.tv_nsec -= 1000000000;
    time.tv_sec++;
  }
  return time;
}

static bool is_urgent(const bufio_async_writer_t *writer) {
  return queued(writer) >= writer->batch_bytes || writer->num_flushing != 0 ||
         writer->has_turn || writer->is_closing;
}

// Waits for something to write: true, or false when all is done. The lock is
// held.
static bool wait_for_work(bufio_async_writer_t *writer) {
  for (;;) {
    bool can_write = queued(writer) != 0 && writer->error == 0;
    if (writer->is_closing && !can_write) {
      return false;
    }
    if (can_write) {
      break;
    }
    pthread_cond_wait(&writer->work, &writer->lock);
  }
  struct timespec deadline = after_ms(writer->delay_ms);
  while (!is_urgent(writer)) {
    if (pthread_cond_timedwait(&writer->work, &writer->lock, &deadline) ==
        ETIMEDOUT) {
      break;
    }
  }
  return true;
}

static void *run_flusher(void *argument) {
  bufio_async_writer_t *writer = argument;
  pthread_mutex_lock(&writer->lock);
  while (wait_for_work(writer)) {
    if (writer->error != 0) {
      continue;
    }
    bufio_ring_view_t view;
    (void)bufio_ring_peek(&writer->ring, &view);
    pthread_mutex_unlock(&writer->lock);
    int64_t count =
        write_some(writer->descriptor, view.part[0].data, view.part[0].len);
    pthread_mutex_lock(&writer->lock);
    if (count < 0) {
      writer->error = (int)count;
    } else {
      bufio_ring_consume(&writer->ring, (size_t)count);
      writer->handed_over += (uint64_t)count;
    }
    pthread_cond_broadcast(&writer->progress);
  }
  pthread_mutex_unlock(&writer->lock);
  return NULL;
}

// ---- producers ----

static int refusal(const bufio_async_writer_t *writer) {
  return writer->error;
}

// Waits for somebody else's turn to end. The lock is held.
static int take_turn(bufio_async_writer_t *writer) {
  while (writer->has_turn && refusal(writer) == 0) {
    pthread_cond_wait(&writer->progress, &writer->lock);
  }
  return refusal(writer);
}

static void put(bufio_async_writer_t *writer, const unsigned char *bytes,
                size_t len) {
  uint64_t before = queued(writer);
  (void)bufio_ring_write(&writer->ring, bytes, len);
  writer->accepted += len;
  // The flusher sleeps without a deadline, or until a batch is full.
  if (before == 0 ||
      (before < writer->batch_bytes && before + len >= writer->batch_bytes)) {
    pthread_cond_signal(&writer->work);
  }
}

static size_t room(const bufio_async_writer_t *writer) {
  return (size_t)(writer->ring.capacity_bytes - queued(writer));
}

// Puts a record for which there is no room yet. The lock is held.
static int put_in_turn(bufio_async_writer_t *writer, const unsigned char *bytes,
                       size_t len) {
  writer->has_turn = true;
  pthread_cond_signal(&writer->work);
  bool is_larger = len > writer->ring.capacity_bytes;
  int status = 0;
  while (len != 0 && status == 0) {
    size_t piece = len;
    if (is_larger && piece > room(writer)) {
      piece = room(writer);
    }
    if (piece == 0 || piece > room(writer)) {
      pthread_cond_wait(&writer->progress, &writer->lock);
      status = refusal(writer);
      continue;
    }
    put(writer, bytes, piece);
    bytes += piece;
    len -= piece;
  }
  writer->has_turn = false;
  pthread_cond_broadcast(&writer->progress);
  return status;
}

int bufio_async_writer_write(bufio_async_writer_t *writer, const void *bytes,
                             size_t len) {
  if (writer->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&writer->lock);
  int status = take_turn(writer);
  if (status == 0) {
    if (len <= room(writer)) {
      put(writer, bytes, len);
    } else {
      status = put_in_turn(writer, bytes, len);
    }
  }
  bufio_unlock(&writer->lock, cancel_state);
  return status;
}

int bufio_async_writer_try_write(bufio_async_writer_t *writer,
                                 const void *bytes, size_t len) {
  if (writer->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&writer->lock);
  int status = refusal(writer);
  if (status == 0 && len > writer->ring.capacity_bytes) {
    status = -EMSGSIZE;
  } else if (status == 0 && (writer->has_turn || len > room(writer))) {
    status = -EAGAIN;
  } else if (status == 0) {
    put(writer, bytes, len);
  }
  bufio_unlock(&writer->lock, cancel_state);
  return status;
}

// ---- waiting for the flusher ----

// The lock is held.
static int flush_locked(bufio_async_writer_t *writer) {
  uint64_t target = writer->accepted;
  writer->num_flushing++;
  pthread_cond_signal(&writer->work);
  while (writer->handed_over < target && refusal(writer) == 0) {
    pthread_cond_wait(&writer->progress, &writer->lock);
  }
  writer->num_flushing--;
  return refusal(writer);
}

int bufio_async_writer_flush(bufio_async_writer_t *writer) {
  if (writer->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&writer->lock);
  int status = flush_locked(writer);
  bufio_unlock(&writer->lock, cancel_state);
  return status;
}

int bufio_async_writer_sync(bufio_async_writer_t *writer) {
  if (writer->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&writer->lock);
  // One at a time: the kernel tells an error once, so a sync that overtook the
  // failing one would return 0 before the error was noted.
  while (writer->is_syncing) {
    pthread_cond_wait(&writer->progress, &writer->lock);
  }
  writer->is_syncing = true;
  int status = flush_locked(writer);
  if (status == 0) {
    pthread_mutex_unlock(&writer->lock);
    status = bufio_io_sync_data(writer->descriptor);
    pthread_mutex_lock(&writer->lock);
    if (status < 0) {
      writer->error = status;
      writer->error_is_final = true;
    }
  }
  writer->is_syncing = false;
  pthread_cond_broadcast(&writer->progress);
  bufio_unlock(&writer->lock, cancel_state);
  return status;
}

int bufio_async_writer_resume(bufio_async_writer_t *writer) {
  if (writer->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&writer->lock);
  int status = writer->error;
  if (!writer->error_is_final) {
    writer->error = 0;
    status = flush_locked(writer);
  }
  bufio_unlock(&writer->lock, cancel_state);
  return status;
}

size_t bufio_async_writer_queued(bufio_async_writer_t *writer) {
  if (writer->is_foreign) {
    return 0;
  }
  int cancel_state = bufio_lock(&writer->lock);
  size_t bytes = (size_t)queued(writer);
  bufio_unlock(&writer->lock, cancel_state);
  return bytes;
}

// ---- lifecycle ----

// The thread takes no signals: handlers of the program run in its own threads.
static int start_flusher(bufio_async_writer_t *writer) {
  sigset_t all;
  sigset_t mask;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &mask);
  int status = -pthread_create(&writer->flusher, NULL, run_flusher, writer);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  return status;
}

static void init_locks(bufio_async_writer_t *writer) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_mutex_init(&writer->lock, NULL);
  pthread_cond_init(&writer->work, &attributes);
  pthread_cond_init(&writer->progress, NULL);
  pthread_condattr_destroy(&attributes);
}

static int start(int descriptor, bool owns_descriptor,
                 const bufio_async_writer_options_t *options,
                 bufio_async_writer_t **out_writer) {
  bufio_async_writer_t *writer = aligned_alloc(_Alignof(bufio_async_writer_t),
                                               sizeof(bufio_async_writer_t));
  if (writer == NULL) {
    return -ENOMEM;
  }
  memset(writer, 0, sizeof(*writer));
  writer->descriptor = descriptor;
  writer->owns_descriptor = owns_descriptor;
  writer->batch_bytes =
      options->batch_bytes != 0 ? options->batch_bytes : BATCH_BYTES;
  writer->delay_ms = options->delay_ms != 0 ? options->delay_ms : DELAY_MS;
  int status = bufio_ring_open(
      &writer->ring, NULL,
      options->queue_bytes != 0 ? options->queue_bytes : QUEUE_BYTES, NULL);
  if (status < 0) {
    goto fail_ring;
  }
  init_locks(writer);
  status = bufio_fork_guard_add(&writer->fork_node, async_in_child);
  if (status < 0) {
    goto fail_fork;
  }
  status = start_flusher(writer);
  if (status < 0) {
    goto fail_thread;
  }
  *out_writer = writer;
  return 0;

fail_thread:
  bufio_fork_guard_remove(&writer->fork_node);
fail_fork:
  bufio_ring_close(&writer->ring);
fail_ring:
  free(writer);
  return status;
}

int bufio_async_writer_open(const char *path,
                            const bufio_async_writer_options_t *options,
                            bufio_async_writer_t **out_writer) {
  options = options != NULL ? options : &default_options;
  int flags = O_WRONLY | O_CREAT | (options->append ? O_APPEND : O_TRUNC) |
              (options->exclusive ? O_EXCL : 0);
  int descriptor =
      bufio_io_open(path, flags, options->mode != 0 ? options->mode : 0666);
  if (descriptor < 0) {
    return descriptor;
  }
  int status = start(descriptor, true, options, out_writer);
  if (status < 0) {
    (void)bufio_system->close(descriptor);
  }
  return status;
}

int bufio_async_writer_attach(int descriptor,
                              const bufio_async_writer_options_t *options,
                              bufio_async_writer_t **out_writer) {
  int flags = descriptor < 0 ? -EBADF : bufio_system->flags(descriptor);
  if (flags < 0) {
    return flags;
  }
  return start(descriptor, false, options != NULL ? options : &default_options,
               out_writer);
}

int bufio_async_writer_close(bufio_async_writer_t *writer) {
  if (writer == NULL) {
    return 0;
  }
  bufio_fork_guard_remove(&writer->fork_node);
  int status = -ECHILD;
  if (!writer->is_foreign) {
    int cancel_state = bufio_lock(&writer->lock);
    writer->is_closing = true;
    pthread_cond_signal(&writer->work);
    pthread_mutex_unlock(&writer->lock);
    pthread_join(writer->flusher, NULL);
    pthread_setcancelstate(cancel_state, &cancel_state);
    status = writer->error;
    pthread_cond_destroy(&writer->progress);
    pthread_cond_destroy(&writer->work);
    pthread_mutex_destroy(&writer->lock);
  }
  if (writer->owns_descriptor) {
    int closed = bufio_system->close(writer->descriptor);
    status = status == 0 && closed != -EINTR ? closed : status;
  }
  bufio_ring_close(&writer->ring);
  free(writer);
  return status;
}
