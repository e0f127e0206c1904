// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Who is alive: locks that the kernel itself takes from a process that ends.
//
// Files: byte-range locks of the open file description (F_OFD_SETLK), far
// behind any byte of data. They end with the last descriptor of the open file,
// so with the last thread of the process, zombie or not, or with exec. No pid
// takes part, so reuse and namespaces do not matter. They exclude attachments,
// not threads of one attachment, and to its own attachment a lock looks free.
//
// System V: a semaphore for each lock, 0 free, 1 taken, with SEM_UNDO. The
// kernel takes it back when the last thread of the process is gone, whatever
// happened to its memory; not at exec.
//
// Asking costs one system call, about a microsecond.

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/sem.h>

#include "shmipc/futex.h"
#include "shmipc/region_internal.h"
#include "shmipc/sysv_internal.h"

#define BYTES_FIRST ((off_t)1 << 40)
#define POLL_NS 50000

// Number of the semaphore of an index.
static unsigned short number_of(uint32_t index) {
  switch (index) {
    case SHMIPC_LOCK_GATE:
      return SHMIPC_SYSV_SEM_GATE;
    case SHMIPC_LOCK_READERS:
      return SHMIPC_SYSV_SEM_READERS;
    default:
      return (unsigned short)(SHMIPC_SYSV_CONTROLS + index);
  }
}

static int file_lock(int fd, int command, short type, uint32_t index) {
  struct flock range = {
      .l_type = type,
      .l_whence = SEEK_SET,
      .l_start = BYTES_FIRST + index,
      .l_len = 1,
  };
  int saved = errno;
  int status = fcntl(fd, command, &range) == 0 ? 0 : -errno;
  errno = saved;
  if (status == 0 && command == F_OFD_GETLK) {
    return range.l_type != F_UNLCK;
  }
  return status == -EACCES ? -EAGAIN : status;
}

int shmipc_presence_fd_try_lock(int fd, uint32_t index, bool is_shared) {
  return file_lock(fd, F_OFD_SETLK, is_shared ? F_RDLCK : F_WRLCK, index);
}

static int set_lock(const shmipc_region_t *region, uint32_t index) {
  unsigned short number = number_of(index);
  struct sembuf steps[2] = {
      {.sem_num = number, .sem_op = 0, .sem_flg = IPC_NOWAIT},
      {.sem_num = number, .sem_op = 1, .sem_flg = IPC_NOWAIT | SEM_UNDO},
  };
  int saved = errno;
  // Readers count; the others exclude each other.
  bool is_shared = index == SHMIPC_LOCK_READERS;
  int status =
      semop(region->semaphore_id, steps + is_shared, is_shared ? 1 : 2) == 0
          ? 0
          : -errno;
  errno = saved;
  return status;
}

int shmipc_presence_try_lock(const shmipc_region_t *region, uint32_t index) {
  assert(index < region->num_slots || index >= SHMIPC_LOCK_GATE);
  if (region->backend == SHMIPC_SYSV) {
    return set_lock(region, index);
  }
  // What is open for reading can be locked only with others.
  return shmipc_presence_fd_try_lock(
      region->fd, index, index == SHMIPC_LOCK_READERS || region->read_only);
}

void shmipc_presence_unlock(const shmipc_region_t *region, uint32_t index) {
  int saved = errno;
  if (region->backend == SHMIPC_SYSV) {
    struct sembuf step = {
        .sem_num = number_of(index),
        .sem_op = -1,
        .sem_flg = IPC_NOWAIT | SEM_UNDO,
    };
    (void)semop(region->semaphore_id, &step, 1);
  } else {
    (void)file_lock(region->fd, F_OFD_SETLK, F_UNLCK, index);
  }
  errno = saved;
}

int shmipc_presence_is_locked(const shmipc_region_t *region, uint32_t index) {
  if (region->backend != SHMIPC_SYSV) {
    return file_lock(region->fd, F_OFD_GETLK, F_WRLCK, index);
  }
  int saved = errno;
  int value = semctl(region->semaphore_id, number_of(index), GETVAL);
  int status = value >= 0 ? value != 0 : -errno;
  errno = saved;
  return status;
}

int shmipc_presence_any(int fd, uint32_t first, uint32_t count) {
  struct flock range = {
      .l_type = F_WRLCK,
      .l_whence = SEEK_SET,
      .l_start = BYTES_FIRST + first,
      .l_len = count,
  };
  int saved = errno;
  int status = fcntl(fd, F_OFD_GETLK, &range) == 0 ? 0 : -errno;
  errno = saved;
  return status < 0 ? status : range.l_type != F_UNLCK;
}

// By asking again and again: waiting in the kernel would have no timeout.
int shmipc_gate_lock(shmipc_region_t *region, int64_t timeout_ns) {
  pthread_mutex_lock(&region->lock);
  int64_t deadline = shmipc_deadline(timeout_ns);
  for (;;) {
    int status = shmipc_presence_try_lock(region, SHMIPC_LOCK_GATE);
    if (status == 0) {
      return 0;
    }
    bool is_taken = status == -EAGAIN || status == -EINTR;
    if (!is_taken || shmipc_has_passed(deadline)) {
      pthread_mutex_unlock(&region->lock);
      return is_taken ? -EBUSY : status;
    }
    struct timespec pause = {.tv_sec = 0, .tv_nsec = POLL_NS};
    nanosleep(&pause, NULL);
  }
}

void shmipc_gate_unlock(shmipc_region_t *region) {
  shmipc_presence_unlock(region, SHMIPC_LOCK_GATE);
  pthread_mutex_unlock(&region->lock);
}
