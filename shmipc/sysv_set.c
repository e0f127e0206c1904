// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The sets of semaphores of System V regions, looked at as a whole.

#include <errno.h>
#include <stdlib.h>
#include <sys/sem.h>

#include "shmipc/region_internal.h"
#include "shmipc/sysv_internal.h"

#ifndef SHM_STAT_ANY
#define SHM_STAT_ANY 15  // Linux 4.17.
#endif

#define SET_MAX \
  (SHMIPC_SYSV_CONTROLS + SHMIPC_PROCESSES_MAX + SHMIPC_UNDO_SEMAPHORES_MAX)

typedef struct set_values {
  unsigned short value[SET_MAX];
  uint32_t num_slots;
} set_values_t;

// -EPROTO if the set does not look like ours.
static int read_set(int id, set_values_t *out_values) {
  struct semid_ds status;
  if (semctl(id, 0, IPC_STAT, &status) < 0) {
    return -errno;
  }
  if (status.sem_nsems <= SHMIPC_SYSV_CONTROLS || status.sem_nsems > SET_MAX) {
    return -EPROTO;
  }
  if (semctl(id, 0, GETALL, out_values->value) < 0) {
    return -errno;
  }
  uint32_t num_undo = out_values->value[SHMIPC_SYSV_SEM_NUM_UNDO];
  uint32_t rest = (uint32_t)status.sem_nsems - SHMIPC_SYSV_CONTROLS;
  if (out_values->value[SHMIPC_SYSV_SEM_MARK] != SHMIPC_SYSV_MARK ||
      num_undo >= rest) {
    return -EPROTO;
  }
  out_values->num_slots = rest - num_undo;
  return 0;
}

static int count_of(const set_values_t *values) {
  int count = 0;
  for (uint32_t i = 0; i < values->num_slots; i++) {
    count += values->value[SHMIPC_SYSV_CONTROLS + i] != 0;
  }
  return count;
}

static bool is_used(const set_values_t *values) {
  return count_of(values) != 0 || values->value[SHMIPC_SYSV_SEM_GATE] != 0 ||
         values->value[SHMIPC_SYSV_SEM_READERS] != 0;
}

int shmipc_sysv_set_count(int semaphore_id) {
  set_values_t values;
  int status = read_set(semaphore_id, &values);
  return status < 0 ? status : count_of(&values);
}

bool shmipc_sysv_set_is_used(int semaphore_id) {
  set_values_t values;
  // What cannot be read is left alone.
  return read_set(semaphore_id, &values) < 0 || is_used(&values);
}

bool shmipc_sysv_set_is_left(int semaphore_id) {
  set_values_t values;
  return read_set(semaphore_id, &values) == 0 && !is_used(&values);
}

// Whether a segment exists that the set of this key belongs to.
static bool has_segment(key_t key) {
  struct shm_info info;
  int last = shmctl(0, SHM_INFO, (struct shmid_ds *)(void *)&info);
  for (int i = 0; i <= last; i++) {
    struct shmid_ds segment;
    // Also those that we may not read.
    int id = shmctl(i, SHM_STAT_ANY, &segment);
    if (id >= 0 && shmipc_sysv_set_key(id) == key) {
      return true;
    }
  }
  return last < 0;
}

// Sets first, segments after: a segment is older than its set.
int shmipc_sysv_collect_sets(void) {
  struct seminfo info;
  int last = semctl(0, 0, SEM_INFO, &info);
  int num_removed = 0;
  for (int i = 0; i <= last; i++) {
    struct semid_ds status;
    int id = semctl(i, 0, SEM_STAT, &status);
    if (id >= 0 && shmipc_sysv_set_is_left(id) &&
        !has_segment(status.sem_perm.__key) && semctl(id, 0, IPC_RMID) == 0) {
      num_removed++;
    }
  }
  return last < 0 ? -errno : num_removed;
}
