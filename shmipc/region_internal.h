// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A process's side of a region, and what the units of it have in common.
// Internal.

#ifndef MY_ALLOC_SHMIPC_REGION_INTERNAL_H_
#define MY_ALLOC_SHMIPC_REGION_INTERNAL_H_

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/region.h"
#include "shmipc/region_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

// Control indices of the presence locks; below them are the slots'.
#define SHMIPC_LOCK_GATE 0x10000u     // Attach, recover, grow, remove.
#define SHMIPC_LOCK_READERS 0x10001u  // Shared by read-only attachments.

// How long others may hold the gate, and how long an opener waits for the
// creator of a System V region.
#define SHMIPC_GATE_WAIT_NS ((int64_t)1000000000)
#define SHMIPC_CREATOR_WAIT_NS ((int64_t)100000000)

struct shmipc_region {
  // Immutable from open to close, and by the fork handler of a child.
  unsigned char *base;
  size_t reserved_bytes;
  // Numbers the attachments of this process; 0: this process may not use it.
  uint64_t serial;
  int status;  // Why `serial` is 0.
  shmipc_backend_t backend;
  uint32_t num_slots;
  uint32_t num_records;
  uint32_t num_undo;
  uint32_t page_bytes;
  uint64_t capacity_bytes;
  uint64_t data_offset;
  uint64_t layout_tag;
  uint64_t header_hash;
  uint64_t heap_offset;      // 0: none.
  uint64_t pages_offset;     // Of the heap's pages; 0: no heap.
  uint64_t *heads;           // Of pages; with a heap.
  unsigned char *pages;      // The first; with a heap.
  uint32_t heap_pages;       // The most of them.
  uint32_t slot;             // UINT32_MAX: none.
  uint32_t slot_generation;  // While it is ours.
  bool read_only;
  bool huge_pages;
  bool is_registered;  // Others can have a barrier done in our threads.
  bool is_counted;     // System V: as a reader.
  int fd;              // Private to this attachment: its locks are our life.
  int shm_id;          // System V.
  int semaphore_id;    // System V.

  // Both grow. Guarded by lock for writing.
  size_t mapped_bytes;
  uint32_t mapped_pages;  // Of the heap's, whole ones.
  pthread_mutex_t lock;
  // Guarded by the lock of the list of attachments (attachment.c).
  struct shmipc_region *next;
  struct shmipc_region *previous;
};

static inline shmipc_header_t *shmipc_header_of(const shmipc_region_t *region) {
  return (shmipc_header_t *)(void *)region->base;
}

static inline shmipc_slot_t *shmipc_slot_of(const shmipc_region_t *region,
                                            uint32_t index) {
  return (shmipc_slot_t *)(void *)(region->base + SHMIPC_HEADER_BYTES) + index;
}

static inline shmipc_record_t *shmipc_record_of(const shmipc_region_t *region,
                                                uint32_t index) {
  uint64_t offset = shmipc_records_offset(region->num_slots);
  return (shmipc_record_t *)(void *)(region->base + offset) + index;
}

static inline size_t shmipc_mapped_bytes(const shmipc_region_t *region) {
  // Pairs with the release store after the pages were mapped.
  return __atomic_load_n(&region->mapped_bytes, __ATOMIC_ACQUIRE);
}

// Records that may be in use: the hint of the header, or all if it is nonsense.
static inline uint32_t shmipc_records_used(const shmipc_region_t *region) {
  // Sequentially consistent: see rwlock.c.
  uint32_t used = __atomic_load_n(&shmipc_header_of(region)->records_used,
                                  __ATOMIC_SEQ_CST);
  return used <= region->num_records ? used : region->num_records;
}

// region_header.c
typedef struct shmipc_plan {
  uint64_t total_bytes;
  uint64_t capacity_bytes;
  uint64_t data_offset;
  uint32_t num_slots;
  uint64_t heap_offset;  // 0: no heap.
  uint32_t heap_pages;
  uint32_t num_records;
  uint32_t page_bytes;
} shmipc_plan_t;

int shmipc_plan_make(const shmipc_region_options_t *options,
                     shmipc_plan_t *out_plan);
// Fills the header but for `ready`.
void shmipc_header_fill(shmipc_header_t *header, const char *name,
                        const shmipc_region_options_t *options,
                        const shmipc_plan_t *plan);
uint64_t shmipc_header_hash(const shmipc_header_t *header);
// Checks a private copy of a header against the measured size, and fills the
// private fields of `region` from it.
int shmipc_header_accept(const shmipc_header_t *copy, uint64_t actual_bytes,
                         const shmipc_region_options_t *options,
                         shmipc_region_t *region);
// Only whether it is one: for the lists.
bool shmipc_header_is_ours(const shmipc_header_t *copy, uint64_t actual_bytes);
// Returns the name without its slash, or NULL and a status.
const char *shmipc_name_check(const char *name, int *out_status);

// region.c
// Maps what the region has beyond what is mapped. Returns 0 or -errno. Under
// `lock`, which whoever has the gate holds, or before others have the handle.
int shmipc_region_refresh(shmipc_region_t *region);
// Maps the first bytes of a region whose private fields are filled.
int shmipc_region_map(shmipc_region_t *region, uint64_t actual_bytes);
shmipc_region_t *shmipc_region_new(const shmipc_region_options_t *options);
// Undoes a partly built one.
void shmipc_region_discard(shmipc_region_t *region);
// Says that everything is there; the last thing that a creator does before the
// name, and on System V the last one.
void shmipc_region_set_ready(shmipc_region_t *region);
// What a creator does between mapping and that.
int shmipc_region_build(shmipc_region_t *region, const char *name,
                        const shmipc_region_options_t *options,
                        const shmipc_plan_t *plan);

// region_file.c: POSIX and memfd
// Where names are; tests put them elsewhere.
extern const char *shmipc_folder;
// Tests: as if the file system had no O_TMPFILE.
extern bool shmipc_no_tmpfile;
int shmipc_file_create(const char *name, const shmipc_region_options_t *options,
                       shmipc_region_t **out_region);
int shmipc_file_open(const char *name, const shmipc_region_options_t *options,
                     shmipc_region_t **out_region);
int shmipc_file_unlink(const char *name);
// Returns the length of the path, or -ENAMETOOLONG.
int shmipc_file_path(const char *name, char *path, size_t size_bytes);
// Removes the file if it is ours and nobody is attached: 1; else 0 or -errno.
int shmipc_file_collect(const char *name);
// Makes the file longer, with all its space; SIGXFSZ is not risked.
int shmipc_file_allocate(int fd, uint64_t from_bytes, uint64_t to_bytes);

// region_sysv.c
int shmipc_sysv_create(const char *name, const shmipc_region_options_t *options,
                       shmipc_region_t **out_region);
int shmipc_sysv_open(const char *name, const shmipc_region_options_t *options,
                     shmipc_region_t **out_region);
int shmipc_sysv_unlink(const char *name);
int shmipc_sysv_collect(const char *name);
// Removes sets of semaphores that no segment has and no process uses.
int shmipc_sysv_collect_sets(void);
void shmipc_sysv_detach(shmipc_region_t *region);

// presence.c: locks that the kernel takes from a process that ends.
// -EAGAIN if somebody else has it.
int shmipc_presence_try_lock(const shmipc_region_t *region, uint32_t index);
void shmipc_presence_unlock(const shmipc_region_t *region, uint32_t index);
// 1, 0 or -errno. By this very attachment does not count for files.
int shmipc_presence_is_locked(const shmipc_region_t *region, uint32_t index);
// Of a file that is not attached: whether any of these is locked by another
// open file. 1, 0 or -errno.
int shmipc_presence_any(int fd, uint32_t first, uint32_t count);
int shmipc_presence_fd_try_lock(int fd, uint32_t index, bool is_shared);

// The gate, against other processes and our own threads. -EBUSY.
int shmipc_gate_lock(shmipc_region_t *region, int64_t timeout_ns);
void shmipc_gate_unlock(shmipc_region_t *region);

// slot.c
// Under the gate: recovers the dead and takes a free slot.
int shmipc_slot_take(shmipc_region_t *region);
// Gives up the own one and everything its threads hold.
void shmipc_slot_give_up(shmipc_region_t *region);
// Under the gate. Returns how many.
int shmipc_slot_recover_dead(shmipc_region_t *region);
// Releases what a record holds, as if its thread had died.
void shmipc_record_release(shmipc_region_t *region, uint32_t index);
// Whether the owner in a lock word lives. Nonsense does not.
bool shmipc_owner_is_alive(const shmipc_region_t *region, uint32_t word);
bool shmipc_record_is_alive(const shmipc_region_t *region, uint32_t owner);

// region_verify.c
// Looks at one thing. Returns what is wrong or NULL, and where and what.
typedef const char *shmipc_look_fn_t(const shmipc_region_t *region,
                                     uint32_t index, uint64_t *out_offset,
                                     uint64_t *out_value);
// Looks several times. Reports what stays wrong and returns 1; otherwise 0.
int shmipc_examine(shmipc_region_t *region, shmipc_look_fn_t *look,
                   uint32_t index, shmipc_problem_fn_t *report, void *context);

// attachment.c
void shmipc_attachment_add(shmipc_region_t *region);
void shmipc_attachment_remove(shmipc_region_t *region);
// Calls `work` with the attachment of that serial, which cannot go away
// meanwhile. False if there is none. NULL: only whether there is one.
bool shmipc_attachment_with(uint64_t serial,
                            void (*work)(shmipc_region_t *region,
                                         uint32_t argument),
                            uint32_t argument);
int shmipc_attachment_prepare(void);
// No fork happens in between. Not recursive; inside of it no `attachment_...`.
void shmipc_fork_block(void);
void shmipc_fork_unblock(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_REGION_INTERNAL_H_
