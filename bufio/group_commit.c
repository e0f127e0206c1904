// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One writer, one lock, one leader at a time.
//
//   append    lock; into the writer's buffer; the ticket is the offset behind
//   wait      lock; until durable >= ticket:
//               nobody leads: lead = flush (locked), fdatasync (unlocked),
//                             durable = what had been flushed, wake all
//               else: sleep
//
// The lock is free during fdatasync, which takes a thousand times as long as
// everything else, so records pile up meanwhile and the next leader takes them
// all. That is where the factor comes from; no timer, no target size.
//
// Invariants:
// 1. Bytes before `durable` were flushed before an fdatasync that returned 0.
// 2. At most one thread leads.
// 3. After a failed fdatasync none is made any more: the kernel would say 0 of
//    pages that it has dropped.

#include "bufio/group_commit.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "bufio/fork_guard.h"
#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/lock_guard.h"
#include "bufio/writer_internal.h"

struct bufio_group {
  pthread_mutex_t lock;
  pthread_cond_t changed;  // durable, is_led or the writer's error.
  bufio_writer_t writer;   // Guarded by lock.
  uint64_t durable;        // Guarded by lock.
  uint64_t sync_count;     // Guarded by lock.
  bool is_led;             // Guarded by lock.
  bool is_foreign;         // Written in the child of a fork, before it runs.
  bufio_fork_node_t fork_node;
};

static void group_in_child(bufio_fork_node_t *node) {
  ((bufio_group_t *)((unsigned char *)node -
                     offsetof(bufio_group_t, fork_node)))
      ->is_foreign = true;
}

int bufio_group_open(const char *path, const bufio_writer_options_t *options,
                     bufio_group_t **out_group) {
  bufio_writer_options_t own = {.durability = BUFIO_DURABILITY_POWER};
  if (options != NULL) {
    own.memory = options->memory;
    own.memory_bytes = options->memory_bytes;
    own.buffer_bytes = options->buffer_bytes;
    own.append = options->append;
    own.exclusive = options->exclusive;
    own.mode = options->mode;
  }
  bufio_group_t *group = calloc(1, sizeof(*group));
  if (group == NULL) {
    return -ENOMEM;
  }
  int status = bufio_writer_open(&group->writer, path, &own);
  if (status < 0) {
    goto fail_writer;
  }
  group->durable = bufio_writer_tell(&group->writer);
  pthread_mutex_init(&group->lock, NULL);
  pthread_cond_init(&group->changed, NULL);
  status = bufio_fork_guard_add(&group->fork_node, group_in_child);
  if (status < 0) {
    goto fail_fork;
  }
  *out_group = group;
  return 0;

fail_fork:
  bufio_writer_close(&group->writer);
fail_writer:
  free(group);
  return status;
}

int bufio_group_close(bufio_group_t *group) {
  if (group == NULL) {
    return 0;
  }
  bufio_fork_guard_remove(&group->fork_node);
  int status = group->is_foreign ? -ECHILD : 0;
  int closed = bufio_writer_close(&group->writer);
  status = status < 0 ? status : closed;
  if (!group->is_foreign) {
    pthread_cond_destroy(&group->changed);
    pthread_mutex_destroy(&group->lock);
  }
  free(group);
  return status;
}

int bufio_group_append(bufio_group_t *group, const void *bytes, size_t len,
                       uint64_t *out_ticket) {
  if (group->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&group->lock);
  int status = bufio_writer_write(&group->writer, bytes, len);
  if (status == 0) {
    *out_ticket = bufio_writer_tell(&group->writer);
  }
  bufio_unlock(&group->lock, cancel_state);
  return status;
}

// Hands over and syncs what there is. The lock is held, but not meanwhile.
static void lead(bufio_group_t *group) {
  group->is_led = true;
  int status = bufio_writer_flush(&group->writer);
  if (status == 0) {
    uint64_t flushed = group->writer.written;
    int descriptor = group->writer.descriptor;
    group->sync_count++;
    pthread_mutex_unlock(&group->lock);
    status = bufio_io_sync_data(descriptor);
    pthread_mutex_lock(&group->lock);
    if (status == 0) {
      group->durable = flushed;
    } else {
      (void)bufio_writer_fail(&group->writer, status, true);
    }
  }
  group->is_led = false;
  pthread_cond_broadcast(&group->changed);
}

// The lock is held.
static int wait_locked(bufio_group_t *group, uint64_t ticket) {
  while (group->durable < ticket) {
    int status = bufio_writer_begin(&group->writer);
    if (group->is_led) {
      pthread_cond_wait(&group->changed, &group->lock);
    } else if (status < 0) {
      return status;
    } else {
      lead(group);
    }
  }
  return 0;
}

int bufio_group_wait(bufio_group_t *group, uint64_t ticket) {
  if (group->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&group->lock);
  int status = wait_locked(group, ticket);
  bufio_unlock(&group->lock, cancel_state);
  return status;
}

int bufio_group_commit(bufio_group_t *group, const void *bytes, size_t len) {
  if (group->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&group->lock);
  int status = bufio_writer_write(&group->writer, bytes, len);
  if (status == 0) {
    status = wait_locked(group, bufio_writer_tell(&group->writer));
  }
  bufio_unlock(&group->lock, cancel_state);
  return status;
}

int bufio_group_resume(bufio_group_t *group) {
  if (group->is_foreign) {
    return -ECHILD;
  }
  int cancel_state = bufio_lock(&group->lock);
  while (group->is_led) {
    pthread_cond_wait(&group->changed, &group->lock);
  }
  int status = bufio_writer_resume(&group->writer);
  bufio_unlock(&group->lock, cancel_state);
  return status;
}

uint64_t bufio_group_sync_count(bufio_group_t *group) {
  if (group->is_foreign) {
    return 0;
  }
  int cancel_state = bufio_lock(&group->lock);
  uint64_t count = group->sync_count;
  bufio_unlock(&group->lock, cancel_state);
  return count;
}
