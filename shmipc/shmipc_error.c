// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One text for each status: what, and what to do. The codes are errnos, so
// those that only the kernel can give have its own text.

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "shmipc/shmipc.h"

typedef struct status_text {
  int error;
  const char *text;
} status_text_t;

static const status_text_t texts[] = {
    {0, "success"},
    {EOWNERDEAD,
     "the lock is yours, but its last owner died or left while it held it: "
     "repair the data, then call the lock's `consistent`. Of a channel: the "
     "last process at the other end died; call again to wait for another"},
    {ENOTRECOVERABLE,
     "the lock was given up by someone who did not call `consistent`: what it "
     "guards may be damaged; initialise both anew"},
    {ETIMEDOUT,
     "the timeout passed (0: it would have had to wait); whoever is waited for "
     "is alive: wait longer, or look at that process"},
    {EDEADLK,
     "this thread holds the lock already: it would wait for itself for ever"},
    {EPERM,
     "not allowed: the lock is not held by this thread, the block is not this "
     "process's, the port is not one that does this, or the region belongs to "
     "another user (`allow_other_owner`)"},
    {ESTALE,
     "the root is gone, but its block was freed or taken before, which must "
     "not be"},
    {EALREADY, "the block is free already: it was freed twice"},
    {ECHILD,
     "this process was forked from the one that attached: open the region "
     "anew in the child"},
    {EROFS, "the region is attached read-only: open it without `read_only`"},
    {EUSERS,
     "as many live processes are attached as the region has slots, or as many "
     "ports open as the channel has: create it with more `max_processes` or "
     "`max_ports`"},
    {ENFILE,
     "as many threads use locks as the region has records, or the process or "
     "system has no more descriptors: create it with more `max_threads`"},
    {ENOLCK,
     "this thread holds as many locks of the region at once as it may "
     "(SHMIPC_HOLDS_MAX): release one first"},
    {EPROTO,
     "this is not a region or channel of this library, not of this version, or "
     "it is damaged: check the name, or remove it and create it anew"},
    {EBADMSG,
     "a name, size or layout tag is not the one expected: programs of "
     "different versions, or two names with one System V key"},
    {EBUSY,
     "another process is creating, attaching to or removing the region and "
     "did not end in time (is it stopped?): try again. Of a channel: a living "
     "process has that end, or the port is at a message already"},
    {EPIPE, "the channel was shut: no message will come or go any more"},
    {EMSGSIZE,
     "the message is longer than the channel's `message_bytes`, not as long as "
     "a fixed one, or longer than the buffer"},
    {EAGAIN, "something is there already: do not poll, call again"},
    {EEXIST,
     "a region of that name exists, or a root: open it, or remove it first"},
    {ENOENT, "no region of that name, or no root: create it first"},
    {ENOSPC,
     "no space: /dev/shm is full, the System V limits (kernel.shmall, "
     "kernel.shmmni, kernel.sem) are reached, or there are SHMIPC_ROOTS_MAX "
     "roots"},
    {EFBIG,
     "larger than RLIMIT_FSIZE or than the region's `capacity_bytes` allows"},
    {ENOMEM,
     "not enough memory or address space (or no huge pages), or the region's "
     "heap is full: create it with more `heap_capacity_bytes`"},
    {EMFILE, "this process has no more descriptors"},
    {EOPNOTSUPP,
     "this kind of region cannot do that: System V regions do not grow, only "
     "they have undone semaphores, only the others have descriptors; and only "
     "those created with `heap_bytes` have a heap"},
    {EOVERFLOW, "the semaphore has its largest value already"},
    {EINVAL,
     "an argument is out of its range, outside of the region, or not the start "
     "of a block"},
    {ENAMETOOLONG,
     "the name has more than SHMIPC_NAME_MAX or SHMIPC_ROOT_NAME_MAX bytes"},
    {EACCES, "permission denied: see the region's mode and owner"},
    {ELOOP, "the name is a symbolic link, which is never followed"},
};

const char *shmipc_strerror(int status) {
  for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
    if (texts[i].error == -status) {
      return texts[i].text;
    }
  }
  const char *text = status < 0 ? strerrordesc_np(-status) : NULL;
  return text != NULL ? text : "not a status of this library";
}
