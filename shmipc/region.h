// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// region: memory that processes share, found by name or passed as a descriptor.
//
// For: the memory in which locks, semaphores and events of this library live,
// beside the caller's own data. Not for: files on a disk.
//
//   shmipc_region_options_t options = {
//       .size_bytes = sizeof(board_t),
//       .initialize = board_init,   // before anybody else can see the memory
//   };
//   shmipc_region_t *region;
//   int status = shmipc_region_create_or_open("/board", &options, &region);
//   if (status < 0) {
//     return puts(shmipc_strerror(status));
//   }
//   board_t *board = shmipc_region_data(region);
//   ...
//   shmipc_region_close(region);
//
// A region appears whole or not at all: its space is allocated and its data
// initialised before its name is there (System V: before others are let in), so
// a creator that is killed leaves nothing that anybody could wait for, and a
// full /dev/shm is -ENOSPC here, not SIGBUS later.
//
// Attachments. Each one that is not read-only takes one of `max_processes`
// slots. The kernel itself tells others whether the process behind a slot is
// alive; a stopped one is. What a dead process held is dealt with by those that
// wait for it, by the next that attaches, or by `shmipc_region_recover`. A
// process may attach to one region several times.
//
// Pointers differ from process to process: store offsets. A region that grew is
// longer for others when they ask for an offset in it (`shmipc_region_at`).
//
// A POSIX region is a file that anyone who may write it may also cut short,
// after which its users die by SIGBUS. Where that matters use memfd, which is
// sealed against it.

#ifndef MY_ALLOC_SHMIPC_REGION_H_
#define MY_ALLOC_SHMIPC_REGION_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/shmipc.h"

#ifdef __cplusplus
extern "C" {
#endif

// Bytes of a name, without the leading slash.
#define SHMIPC_NAME_MAX 200
#define SHMIPC_PROCESSES_MAX 1024u
#define SHMIPC_THREADS_MAX 16384u
#define SHMIPC_UNDO_SEMAPHORES_MAX 256u
// Locks that one thread may hold in one region at once.
#define SHMIPC_HOLDS_MAX 15

typedef enum shmipc_backend {
  SHMIPC_POSIX,  // A file in /dev/shm, as shm_open makes.
  SHMIPC_SYSV,   // shmget; with semaphore sets for liveness. Cannot grow.
  SHMIPC_MEMFD,  // No name: passed by descriptor. Sealed against shrinking.
} shmipc_backend_t;

// All zero but `size_bytes` is a good default.
typedef struct shmipc_region_options {
  shmipc_backend_t backend;

  // -- For creating; opening ignores them, but for `layout_tag`.
  // Of the caller's data. 1 or more.
  size_t size_bytes;
  // The most that the data may grow to; address space of this size is reserved
  // in each process. 0: `size_bytes`, no growth.
  size_t capacity_bytes;
  // A heap behind the data (block.h): bytes of its pages, rounded up to 64 KiB;
  // 0: none. Its tables come on top: 80 bytes a page of the capacity, 24 KiB.
  size_t heap_bytes;
  // The most that its pages may grow to, by themselves when they are full.
  // 0: `heap_bytes`. With a heap the data itself cannot grow (-EINVAL), and
  // what `shmipc_region_grow` adds is the heap's.
  size_t heap_capacity_bytes;
  // Attachments at one time, 1 to SHMIPC_PROCESSES_MAX. 0: 64.
  uint32_t max_processes;
  // Threads of all processes that use locks, at one time, 1 to
  // SHMIPC_THREADS_MAX. 0: 256. Each costs 128 bytes.
  uint32_t max_threads;
  // Permissions, less the umask. 0: 0600. Whoever is to attach other than
  // read-only needs read and write.
  unsigned int mode;
  // The caller's own version of its data: an opener with another one gets
  // -EBADMSG. 0 as opener: any.
  uint64_t layout_tag;
  // Fills the zeroed data before anybody else sees it. A negative result is
  // returned by create, and nothing remains. May be NULL. Locks in the data are
  // initialised here (all zero is initialised); none may be taken.
  int (*initialize)(void *context, void *data, size_t size_bytes);
  void *context;
  // Huge pages. memfd and System V: from the kernel's pool, -ENOMEM if that is
  // empty. POSIX: a hint (MADV_HUGEPAGE).
  bool huge_pages;
  // memfd: sealed against growing, too.
  bool seal_growth;
  // System V: semaphores for `shmipc_undo_semaphore_...` (semaphore.h).
  uint32_t num_undo_semaphores;

  // -- For opening.
  // Maps the memory read-only; needs only the permission to read. Takes no
  // slot, and all that changes anything is -EROFS.
  bool read_only;
  // Accepts a region of a user that is neither the effective one nor root.
  bool allow_other_owner;
} shmipc_region_options_t;

typedef struct shmipc_region shmipc_region_t;

// Creates a region and attaches to it. `name`: one leading slash or none, then
// 1 to SHMIPC_NAME_MAX bytes without a slash, not "." or "..", not starting
// with ".shmipc."; NULL for memfd. -EEXIST, -EINVAL, -ENAMETOOLONG, -ENOSPC,
// -EFBIG (RLIMIT_FSIZE), -ENOMEM, -EACCES.
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_create(
    const char *name, const shmipc_region_options_t *options,
    shmipc_region_t **out_region);

// Attaches to a region. `options` may be NULL (POSIX). -ENOENT, -EACCES, -EPERM
// (owner), -ELOOP, -EPROTO (no region, or damaged), -EBADMSG (layout tag),
// -EUSERS (no slot), -EBUSY (System V: its creator has been at it for 100 ms,
// and is alive; all: 1 s in attaching), -ENOMEM.
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_open(
    const char *name, const shmipc_region_options_t *options,
    shmipc_region_t **out_region);

// Either of the two: of any number that call it at once, one creates.
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_create_or_open(
    const char *name, const shmipc_region_options_t *options,
    shmipc_region_t **out_region);

// Attaches to the region behind a descriptor of shared memory, which remains
// the caller's. Needs /proc. -EINVAL for what is no file in memory; -EPROTO for
// one that can shrink (a memfd without seals).
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_open_fd(
    int descriptor, const shmipc_region_options_t *options,
    shmipc_region_t **out_region);

// Returns a descriptor for others, to be passed to them and closed by the
// caller; close-on-exec. Its open file is not the attachment's, so passing it
// around keeps nobody "alive". -EOPNOTSUPP (System V).
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_share_fd(shmipc_region_t *region);

// Sends such a descriptor over a Unix socket, with one byte of data; waits as
// the socket does.
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_send(shmipc_region_t *region,
                                                  int socket);
// Receives one and attaches. -EPROTO when the message has none or too many.
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_receive(
    int socket, const shmipc_region_options_t *options,
    shmipc_region_t **out_region);

// Detaches. Locks still held are released as if the process had died. No other
// thread may be using the handle. NULL is a no-op.
SHMIPC_API void shmipc_region_close(shmipc_region_t *region);

// Removes the name; those attached keep the memory. -ENOENT; -EPROTO for what
// is no region of ours: that is left alone.
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_unlink(const char *name,
                                                    shmipc_backend_t backend);

// The caller's data in this process: constant until close.
SHMIPC_API void *shmipc_region_data(const shmipc_region_t *region);

// Bytes of data that are mapped now, a heap among them; grows only.
SHMIPC_API size_t shmipc_region_size(const shmipc_region_t *region);

// Returns the `len` bytes at `offset` of the data, mapping what others have
// added; NULL if they are not all in the region.
SHMIPC_API void *shmipc_region_at(shmipc_region_t *region, uint64_t offset,
                                  size_t len);

// Returns this process's attachment in whose memory `pointer` lies: for objects
// in a region that must find the handle by their own address. NULL if it is in
// none, or in a parent's. It may be a region that is still being created (from
// `initialize`).
SHMIPC_API shmipc_region_t *shmipc_region_containing(const void *pointer);

// Makes the data `size_bytes` long; what is longer already stays. New bytes are
// zero. -EFBIG beyond the capacity or RLIMIT_FSIZE, -ENOSPC, -EOPNOTSUPP,
// -EPERM (sealed), -EBUSY. On failure the region is as before.
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_grow(shmipc_region_t *region,
                                                  size_t size_bytes);

// Deals with what dead processes held and frees their slots. Returns how many
// there were, or -EBUSY, -EROFS, -ECHILD. It maps what others have added to the
// region; where it cannot (-ENOMEM, -EMFILE, -ENFILE, -EACCES, -ENOENT: /proc),
// all is as before.
SHMIPC_API int shmipc_region_recover(shmipc_region_t *region);

typedef struct shmipc_region_info {
  shmipc_backend_t backend;
  size_t size_bytes;      // Of the data.
  size_t capacity_bytes;  // Of the data.
  uint32_t max_processes;
  uint32_t max_threads;
  uint32_t num_live;    // Attachments by live processes; not read-only ones.
  uint32_t num_dead;    // By dead ones, not recovered yet.
  uint32_t slot;        // Of this attachment; UINT32_MAX if it has none.
  uint64_t layout_tag;  // As created.
} shmipc_region_info_t;

// -ECHILD.
SHMIPC_API SHMIPC_MUST_USE int shmipc_region_info_get(
    shmipc_region_t *region, shmipc_region_info_t *out_info);

// Called for each thing that is wrong: what, at which byte of the region (the
// header is at 0), and the value found there.
typedef void shmipc_problem_fn_t(void *context, const char *what,
                                 uint64_t offset, uint64_t value);

// Checks the header, the slots, the threads' records and the locks they hold,
// the heap and its roots, and changes nothing. Returns the number of problems,
// or -ECHILD. Others may be at work: what does not last for several looks is
// not reported. `report` may be NULL. What dead processes left is no problem;
// it awaits its recovery.
SHMIPC_API int shmipc_region_verify(shmipc_region_t *region,
                                    shmipc_problem_fn_t *report, void *context);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_REGION_H_
