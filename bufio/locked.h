// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// locked: a writer that threads share.
//
// For: logs and reports to which several threads add now and then. Not for: hot
// paths of many threads (a writer each, or async_writer.h).
//
//   bufio_locked_writer_t log;
//   int status = bufio_locked_writer_open(&log, "log.txt", NULL);
//   bufio_locked_writer_write(&log, record, len);          // any thread
//
//   bufio_writer_t *writer = bufio_locked_writer_acquire(&log);
//   bufio_writer_puts(writer, "several calls, ");          // nobody in between
//   bufio_writer_put_u64(writer, 1);
//   bufio_locked_writer_release(&log);
//
// Every function does what its namesake in writer.h does, with the lock held.
//
// Threads: any, but open and close. fork: the child finds the lock free and the
// writer as writer.h says. Not between acquire and release.

#ifndef MY_ALLOC_BUFIO_LOCKED_H_
#define MY_ALLOC_BUFIO_LOCKED_H_

#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>

#include "bufio/bufio.h"
#include "bufio/writer.h"

#ifdef __cplusplus
extern "C" {
#endif

// Placed by the caller, not to be moved while open.
typedef struct bufio_locked_writer {
  pthread_mutex_t lock;
  bufio_writer_t writer;  // Guarded by lock.
  int cancel_state;       // Of who acquired. Guarded by lock.
  bufio_fork_node_t fork_node;
} bufio_locked_writer_t;

BUFIO_API int bufio_locked_writer_open(
    bufio_locked_writer_t *locked, const char *path,
    const bufio_writer_options_t *options) BUFIO_MUST_USE;
BUFIO_API int bufio_locked_writer_attach(
    bufio_locked_writer_t *locked, int descriptor,
    const bufio_writer_options_t *options) BUFIO_MUST_USE;
BUFIO_API int bufio_locked_writer_close(bufio_locked_writer_t *locked);

BUFIO_API int bufio_locked_writer_write(bufio_locked_writer_t *locked,
                                        const void *bytes, size_t len);
BUFIO_API int bufio_locked_writer_printf(bufio_locked_writer_t *locked,
                                         const char *format, ...)
    __attribute__((format(printf, 2, 3)));
BUFIO_API int bufio_locked_writer_flush(bufio_locked_writer_t *locked);
BUFIO_API int bufio_locked_writer_sync(bufio_locked_writer_t *locked)
    BUFIO_MUST_USE;
BUFIO_API int bufio_locked_writer_resume(bufio_locked_writer_t *locked)
    BUFIO_MUST_USE;

// Takes the lock for several calls; not twice by one thread, which is not
// cancelled before it releases.
BUFIO_API bufio_writer_t *bufio_locked_writer_acquire(
    bufio_locked_writer_t *locked);
BUFIO_API void bufio_locked_writer_release(bufio_locked_writer_t *locked);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_LOCKED_H_
