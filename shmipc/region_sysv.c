// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// System V regions. A name becomes a key by hashing; the header has the whole
// name, so two names of one key are told apart (-EBADMSG).
//
// A segment cannot be made in secret and then shown, as a file can. Three
// objects take part:
//
//   name lock   semaphore set, key from the name; 1 semaphore, with SEM_UNDO
//   segment     key from the name
//   locks       semaphore set, key from the segment's id; see presence.c
//
// 1. Whoever creates, attaches or removes holds the name lock. The kernel takes
//    it from a process that dies. So a segment that is not `ready`, seen with
//    the name lock held, is what a killed creator left: it is removed, and the
//    set with it. One whose creator is alive is one whose name lock is taken:
//    -EBUSY after 100 ms.
// 2. The segment is there before its set, and the set after it: a set without a
//    segment, which nobody uses, is what was left, and may go.
// 3. The set says so that it is one of ours (MARK) only after the creator took
//    its slot in it, so it has a user from the moment that anybody may look.
//
// shmget(2) cannot reserve memory. MADV_POPULATE_WRITE makes the pages at once
// and fails where a store would have been SIGBUS.

#include <errno.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>

#include "shmipc/futex.h"
#include "shmipc/region_internal.h"
#include "shmipc/sysv_internal.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14.
#endif

#define FNV_BASIS 0x811c9dc5u
#define FNV_PRIME 0x01000193u

static key_t hash_key(uint32_t hash, const void *bytes, size_t len) {
  const unsigned char *byte = bytes;
  for (size_t i = 0; i < len; i++) {
    hash = (hash ^ byte[i]) * FNV_PRIME;
  }
  return (key_t)(hash != IPC_PRIVATE ? hash : 1);
}

key_t shmipc_sysv_key(const char *name) {
  return hash_key(FNV_BASIS, name, strlen(name));
}

key_t shmipc_sysv_set_key(int shm_id) {
  return hash_key(~FNV_BASIS, &shm_id, sizeof(shm_id));
}

// Returns the id of the set that is locked, or -errno. Another one may be there
// by the next turn: removed with the region.
static int name_lock(const char *name, int permissions, int64_t timeout_ns) {
  key_t key = shmipc_sysv_key(name);
  int64_t deadline = shmipc_deadline(timeout_ns);
  struct sembuf steps[2] = {
      {.sem_num = 0, .sem_op = 0},
      {.sem_num = 0, .sem_op = 1, .sem_flg = SEM_UNDO},
  };
  do {
    int id = semget(key, 1, IPC_CREAT | permissions);
    if (id < 0) {
      return errno == EINVAL ? -EBADMSG : -errno;
    }
    struct timespec slice = {.tv_sec = 0, .tv_nsec = SHMIPC_SLICE_NS};
    if (semtimedop(id, steps, 2, &slice) == 0) {
      return id;
    }
    if (errno != EAGAIN && errno != EINTR && errno != EIDRM &&
        errno != EINVAL) {
      return -errno;
    }
  } while (!shmipc_has_passed(deadline));
  return -EBUSY;
}

static void name_unlock(int id) {
  struct sembuf step = {.sem_num = 0, .sem_op = -1, .sem_flg = SEM_UNDO};
  step.sem_flg |= IPC_NOWAIT;
  (void)semop(id, &step, 1);
}

int shmipc_sysv_open_set(int shm_id, uint32_t num_slots, uint32_t num_undo) {
  int want = (int)(num_slots + SHMIPC_SYSV_CONTROLS + num_undo);
  int id = semget(shmipc_sysv_set_key(shm_id), want, 0);
  struct semid_ds status;
  if (id < 0 || semctl(id, 0, IPC_STAT, &status) < 0 ||
      status.sem_nsems != (unsigned long)want ||
      semctl(id, SHMIPC_SYSV_SEM_MARK, GETVAL) != SHMIPC_SYSV_MARK) {
    return -EPROTO;
  }
  return id;
}

// With the name lock held: what a killed creator left, or we are removing.
static void remove_segment(int shm_id, bool with_set) {
  if (with_set) {
    int set = semget(shmipc_sysv_set_key(shm_id), 0, 0);
    if (set >= 0) {
      (void)semctl(set, 0, IPC_RMID);
    }
  }
  (void)shmctl(shm_id, IPC_RMID, NULL);
}

// Copies the header of a segment. -EPROTO if it is too short for one.
int shmipc_sysv_read_header(int shm_id, shmipc_header_t *out_header,
                            struct shmid_ds *out_status) {
  if (shmctl(shm_id, IPC_STAT, out_status) < 0) {
    return -errno;
  }
  if (out_status->shm_segsz < sizeof(*out_header)) {
    return -EPROTO;
  }
  void *memory = shmat(shm_id, NULL, SHM_RDONLY);
  if (memory == (void *)-1) {
    return -errno;
  }
  // Acquire: pairs with the store of `ready` by the creator.
  uint32_t ready =
      __atomic_load_n(&((shmipc_header_t *)memory)->ready, __ATOMIC_ACQUIRE);
  memcpy(out_header, memory, sizeof(*out_header));
  out_header->ready = ready;
  shmdt(memory);
  return 0;
}

// Whether a segment is one that its creator did not finish: not ready, and with
// our magic; or still empty and, for it might be somebody else's, not in use.
static bool is_half_created(const shmipc_header_t *header,
                            const struct shmid_ds *segment) {
  return header->ready == 0 &&
         (header->magic == SHMIPC_MAGIC ||
          (header->magic == 0 && segment->shm_nattch == 0));
}

static int make_set(shmipc_region_t *region) {
  int count =
      (int)(region->num_slots + SHMIPC_SYSV_CONTROLS + region->num_undo);
  struct shmid_ds segment;
  if (shmctl(region->shm_id, IPC_STAT, &segment) < 0) {
    return -errno;
  }
  int flags = IPC_CREAT | IPC_EXCL | (int)(segment.shm_perm.mode & 0777);
  // A reader has to count itself, and a semaphore that one may not alter is of
  // no use: those who may read may alter.
  flags |= (flags & 0444) >> 1;
  key_t key = shmipc_sysv_set_key(region->shm_id);
  int id = semget(key, count, flags);
  int old = id < 0 && errno == EEXIST ? semget(key, 0, 0) : -1;
  // Of a segment long gone that had the same id.
  if (old >= 0 && shmipc_sysv_set_is_left(old)) {
    (void)semctl(old, 0, IPC_RMID);
    id = semget(key, count, flags);
  }
  if (id < 0) {
    return errno == EINVAL || errno == EEXIST ? -ENOSPC : -errno;
  }
  region->semaphore_id = id;
  return 0;
}

static int fill_segment(shmipc_region_t *region, const char *name,
                        const shmipc_region_options_t *options,
                        const shmipc_plan_t *plan) {
  region->num_slots = plan->num_slots;
  region->num_records = plan->num_records;
  region->num_undo = options->num_undo_semaphores;
  region->page_bytes = plan->page_bytes;
  region->capacity_bytes = plan->capacity_bytes;
  region->data_offset = plan->data_offset;
  region->heap_offset = plan->heap_offset;
  region->heap_pages = plan->heap_pages;
  region->layout_tag = options->layout_tag;
  int status = shmipc_region_map(region, plan->total_bytes);
  if (status < 0) {
    return status;
  }
  // Older kernels do not know it (EINVAL).
  if (madvise(region->base, plan->total_bytes, MADV_POPULATE_WRITE) < 0 &&
      errno != EINVAL) {
    return -ENOMEM;
  }
  status = make_set(region);
  if (status == 0) {
    status = shmipc_region_build(region, name, options, plan);
  }
  if (status == 0 && (semctl(region->semaphore_id, SHMIPC_SYSV_SEM_NUM_UNDO,
                             SETVAL, (int)region->num_undo) < 0 ||
                      semctl(region->semaphore_id, SHMIPC_SYSV_SEM_MARK, SETVAL,
                             SHMIPC_SYSV_MARK) < 0)) {
    status = -errno;
  }
  // Last: a segment that is ready has a set that is marked.
  if (status == 0) {
    shmipc_region_set_ready(region);
  }
  return status;
}

// With the name lock held.
static int create_locked(shmipc_region_t *region, const char *name,
                         const shmipc_region_options_t *options,
                         const shmipc_plan_t *plan) {
  key_t key = shmipc_sysv_key(name);
  int old = shmget(key, 0, 0);
  if (old >= 0) {
    shmipc_header_t header;
    struct shmid_ds segment;
    int status = shmipc_sysv_read_header(old, &header, &segment);
    if (status == 0 && is_half_created(&header, &segment)) {
      remove_segment(old, true);
    }
  }
  int mode = (int)(options->mode != 0 ? options->mode : 0600);
  int flags = IPC_CREAT | IPC_EXCL | mode;
  flags |= options->huge_pages ? SHM_HUGETLB : 0;
  int id = shmget(key, plan->total_bytes, flags);
  if (id < 0) {
    // EINVAL: more than kernel.shmmax.
    return errno == EINVAL ? -ENOSPC : -errno;
  }
  region->shm_id = id;
  int status = fill_segment(region, name, options, plan);
  if (status < 0) {
    remove_segment(id, true);
  }
  return status;
}

static int permissions_of(const shmipc_region_options_t *options) {
  int mode = (int)(options->mode != 0 ? options->mode : 0600);
  return mode | ((mode & 0444) >> 1);
}

int shmipc_sysv_create(const char *name, const shmipc_region_options_t *options,
                       shmipc_region_t **out_region) {
  shmipc_plan_t plan;
  int status = shmipc_plan_make(options, &plan);
  if (status < 0) {
    return status;
  }
  shmipc_region_t *region = shmipc_region_new(options);
  if (region == NULL) {
    return -ENOMEM;
  }
  int lock = name_lock(name, permissions_of(options), SHMIPC_CREATOR_WAIT_NS);
  status = lock;
  if (lock >= 0) {
    status = create_locked(region, name, options, &plan);
    name_unlock(lock);
  }
  if (status < 0) {
    shmipc_region_discard(region);
    return status;
  }
  *out_region = region;
  return 0;
}

static int attach_locked(shmipc_region_t *region, const shmipc_header_t *header,
                         const struct shmid_ds *segment,
                         const shmipc_region_options_t *options) {
  int status =
      shmipc_header_accept(header, segment->shm_segsz, options, region);
  if (status < 0) {
    return status;
  }
  region->semaphore_id =
      shmipc_sysv_open_set(region->shm_id, region->num_slots, region->num_undo);
  if (region->semaphore_id < 0) {
    return region->semaphore_id;
  }
  status = shmipc_region_map(region, segment->shm_segsz);
  if (status < 0) {
    return status;
  }
  if (region->read_only) {
    status = shmipc_presence_try_lock(region, SHMIPC_LOCK_READERS);
    region->is_counted = status == 0;
    return status;
  }
  status = shmipc_gate_lock(region, SHMIPC_GATE_WAIT_NS);
  if (status == 0) {
    status = shmipc_slot_take(region);
    shmipc_gate_unlock(region);
  }
  return status;
}

// With the name lock held.
static int open_locked(shmipc_region_t *region, const char *name,
                       const shmipc_region_options_t *options) {
  shmipc_header_t header;
  struct shmid_ds segment;
  int id = shmget(shmipc_sysv_key(name), 0, 0);
  if (id < 0) {
    return -errno;
  }
  int status = shmipc_sysv_read_header(id, &header, &segment);
  if (status < 0) {
    return status;
  }
  if (!options->allow_other_owner && segment.shm_perm.cuid != geteuid() &&
      segment.shm_perm.cuid != 0) {
    return -EPERM;
  }
  if (is_half_created(&header, &segment)) {
    remove_segment(id, true);
    return -ENOENT;
  }
  if (header.magic == SHMIPC_MAGIC &&
      strncmp(header.name, name, sizeof(header.name)) != 0) {
    return -EBADMSG;
  }
  region->shm_id = id;
  return attach_locked(region, &header, &segment, options);
}

int shmipc_sysv_open(const char *name, const shmipc_region_options_t *options,
                     shmipc_region_t **out_region) {
  // No name lock is made where there is no region.
  if (shmget(shmipc_sysv_key(name), 0, 0) < 0) {
    return -errno;
  }
  shmipc_region_t *region = shmipc_region_new(options);
  if (region == NULL) {
    return -ENOMEM;
  }
  int lock = name_lock(name, 0600, SHMIPC_CREATOR_WAIT_NS);
  int status = lock;
  if (lock >= 0) {
    status = open_locked(region, name, options);
    name_unlock(lock);
  }
  if (status < 0) {
    shmipc_region_discard(region);
    return status;
  }
  *out_region = region;
  return 0;
}

// The set outlives the segment's name as long as somebody needs it; the last
// one who leaves removes it.
void shmipc_sysv_detach(shmipc_region_t *region) {
  if (region->base != NULL) {
    shmdt(region->base);
  }
  if (region->semaphore_id < 0 || region->status == -ECHILD) {
    return;
  }
  if (region->is_counted) {
    shmipc_presence_unlock(region, SHMIPC_LOCK_READERS);
  }
  struct shmid_ds segment;
  bool is_gone = shmctl(region->shm_id, IPC_STAT, &segment) < 0 ||
                 (segment.shm_perm.mode & SHM_DEST) != 0;
  if (is_gone && !shmipc_sysv_set_is_used(region->semaphore_id)) {
    (void)semctl(region->semaphore_id, 0, IPC_RMID);
  }
}

// With the name lock held. `only_unused`: what lives stays, and is 0.
static int remove_locked(const char *name, bool only_unused) {
  shmipc_header_t header;
  struct shmid_ds segment;
  int id = shmget(shmipc_sysv_key(name), 0, 0);
  if (id < 0) {
    return errno == ENOENT && only_unused ? 0 : -errno;
  }
  int status = shmipc_sysv_read_header(id, &header, &segment);
  if (status < 0) {
    return status;
  }
  if (is_half_created(&header, &segment)) {
    remove_segment(id, true);
    return only_unused ? 1 : -ENOENT;
  }
  if (header.magic != SHMIPC_MAGIC) {
    return -EPROTO;
  }
  if (strncmp(header.name, name, sizeof(header.name)) != 0) {
    return -EBADMSG;
  }
  int set = semget(shmipc_sysv_set_key(id), 0, 0);
  bool is_used = set >= 0 && shmipc_sysv_set_is_used(set);
  if (only_unused && is_used) {
    return 0;
  }
  if (shmctl(id, IPC_RMID, NULL) < 0) {
    return -errno;
  }
  if (set >= 0 && !is_used) {
    (void)semctl(set, 0, IPC_RMID);
  }
  return 1;
}

static int remove_by_name(const char *name, bool only_unused) {
  if (shmget(shmipc_sysv_key(name), 0, 0) < 0) {
    return -errno;
  }
  int lock = name_lock(name, 0600, SHMIPC_CREATOR_WAIT_NS);
  if (lock < 0) {
    return lock;
  }
  int status = remove_locked(name, only_unused);
  if (status == 1) {
    // The last use of it; whoever waits for it starts over with another.
    (void)semctl(lock, 0, IPC_RMID);
  } else {
    name_unlock(lock);
  }
  return status;
}

int shmipc_sysv_unlink(const char *name) {
  int status = remove_by_name(name, false);
  return status > 0 ? 0 : status;
}

int shmipc_sysv_collect(const char *name) {
  int status = remove_by_name(name, true);
  // Somebody creates or attaches; or it has gone.
  return status == -EBUSY || status == -ENOENT ? 0 : status;
}
