// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The System V semaphores of a region, for its users: in the same set as the
// slots' (sysv_internal.h), with SEM_UNDO.

#include <errno.h>
#include <sys/sem.h>

#include "shmipc/futex.h"
#include "shmipc/region_internal.h"
#include "shmipc/semaphore.h"
#include "shmipc/sysv_internal.h"

static int check(const shmipc_region_t *region, uint32_t index) {
  if (region->serial == 0) {
    return region->status;
  }
  if (region->backend != SHMIPC_SYSV) {
    return -EOPNOTSUPP;
  }
  if (region->read_only) {
    return -EROFS;
  }
  return index < region->num_undo ? 0 : -EINVAL;
}

static unsigned short number_of(const shmipc_region_t *region, uint32_t index) {
  return (unsigned short)(SHMIPC_SYSV_CONTROLS + region->num_slots + index);
}

// A removed set: its id may be invalid by now.
static int status_of_errno(void) {
  return errno == EINVAL ? -EIDRM : -errno;
}

int shmipc_undo_semaphore_set(shmipc_region_t *region, uint32_t index,
                              int value) {
  int status = check(region, index);
  if (status < 0) {
    return status;
  }
  if (value < 0 || value > SHMIPC_UNDO_SEMAPHORE_VALUE_MAX) {
    return -EINVAL;
  }
  int saved = errno;
  if (semctl(region->semaphore_id, number_of(region, index), SETVAL, value) <
      0) {
    status = status_of_errno();
  }
  errno = saved;
  return status;
}

int shmipc_undo_semaphore_wait(shmipc_region_t *region, uint32_t index,
                               int64_t timeout_ns) {
  int status = check(region, index);
  if (status < 0) {
    return status;
  }
  struct sembuf step = {
      .sem_num = number_of(region, index),
      .sem_op = -1,
      .sem_flg = SEM_UNDO,
  };
  int saved = errno;
  int64_t deadline = shmipc_deadline(timeout_ns);
  for (;;) {
    struct timespec timeout = {0};
    if (deadline >= 0) {
      int64_t left = deadline - shmipc_now_ns();
      left = left > 0 ? left : 0;
      timeout.tv_sec = (time_t)(left / 1000000000);
      timeout.tv_nsec = (long)(left % 1000000000);
    }
    if (semtimedop(region->semaphore_id, &step, 1,
                   deadline >= 0 ? &timeout : NULL) == 0) {
      break;
    }
    if (errno != EINTR) {
      status = errno == EAGAIN ? -ETIMEDOUT : status_of_errno();
      break;
    }
  }
  errno = saved;
  return status;
}

int shmipc_undo_semaphore_post(shmipc_region_t *region, uint32_t index) {
  int status = check(region, index);
  if (status < 0) {
    return status;
  }
  struct sembuf step = {
      .sem_num = number_of(region, index),
      .sem_op = 1,
      .sem_flg = SEM_UNDO,
  };
  int saved = errno;
  if (semop(region->semaphore_id, &step, 1) < 0) {
    status = errno == ERANGE ? -EOVERFLOW : status_of_errno();
  }
  errno = saved;
  return status;
}

int shmipc_undo_semaphore_value(shmipc_region_t *region, uint32_t index) {
  int status = check(region, index);
  if (status < 0) {
    return status;
  }
  int saved = errno;
  int value = semctl(region->semaphore_id, number_of(region, index), GETVAL);
  value = value >= 0 ? value : status_of_errno();
  errno = saved;
  return value;
}
