// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// async_writer: a writer of which another thread makes the system calls.
//
// For: threads that must not wait for a disk or a pipe, as long as it is not
// slower than they are for longer than the queue lasts. Not for: dropping what
// does not fit (it waits, or says so), or bytes that must survive the process.
//
//   bufio_async_writer_t *writer;
//   int status = bufio_async_writer_open("trace.log", NULL, &writer);
//   bufio_async_writer_write(writer, record, len);      // any thread
//   status = bufio_async_writer_close(writer);
//
// Order: records come out in the order in which they were accepted, each in one
// piece; those of one thread in its order.
// Memory: the queue, and nothing else. When it is full, write waits for room
// and try_write returns -EAGAIN.
// Errors: as in writer.h. When the kernel refuses bytes, exactly those that it
// did not take stay in the queue, and the error is sticky: every later write,
// flush, sync and close returns it, and threads that wait for room are woken.
// `bufio_async_writer_resume` goes on after the cause was removed. A failed
// sync is final.
//
// Threads: any, but open and close. fork: every call in the child returns
// -ECHILD and writes nothing; close gives back memory.

#ifndef MY_ALLOC_BUFIO_ASYNC_WRITER_H_
#define MY_ALLOC_BUFIO_ASYNC_WRITER_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bufio_async_writer bufio_async_writer_t;

// All zero is the default; a NULL pointer is all zero.
typedef struct bufio_async_writer_options {
  // The bound, rounded up to a power of two. 0: 1 MiB.
  size_t queue_bytes;
  // The other thread sleeps until so many bytes are queued, ... 0: 64 KiB.
  size_t batch_bytes;
  // ... or the oldest has waited for so long. 0: 10 ms.
  unsigned int delay_ms;
  // `open` only: as of bufio_writer_options_t.
  bool append;
  bool exclusive;
  unsigned int mode;
} bufio_async_writer_options_t;

// Opens the file for writing and starts the thread. Errors of open(2), -ENOMEM,
// -EAGAIN (no thread), -EINVAL.
BUFIO_API int bufio_async_writer_open(
    const char *path, const bufio_async_writer_options_t *options,
    bufio_async_writer_t **out_writer) BUFIO_MUST_USE;

// The same to a descriptor, which stays the caller's.
BUFIO_API int bufio_async_writer_attach(
    int descriptor, const bufio_async_writer_options_t *options,
    bufio_async_writer_t **out_writer) BUFIO_MUST_USE;

// Waits until everything is handed over, ends the thread, closes. Returns the
// sticky error; what could not be written is lost then. NULL is 0.
BUFIO_API int bufio_async_writer_close(bufio_async_writer_t *writer);

// Accepts a record: 0. Waits while there is no room. The sticky error, and
// nothing was accepted; only of a record larger than the queue a beginning may
// have been.
BUFIO_API int bufio_async_writer_write(bufio_async_writer_t *writer,
                                       const void *bytes, size_t len);

// The same without waiting: -EAGAIN if there is no room now, -EMSGSIZE if there
// never is.
BUFIO_API int bufio_async_writer_try_write(bufio_async_writer_t *writer,
                                           const void *bytes,
                                           size_t len) BUFIO_MUST_USE;

// Waits until everything that was accepted before is handed over to the kernel.
BUFIO_API int bufio_async_writer_flush(bufio_async_writer_t *writer);

// Flushes, and waits until the disk has it. Its failure is final.
BUFIO_API int bufio_async_writer_sync(bufio_async_writer_t *writer)
    BUFIO_MUST_USE;

// Forgets the sticky error and flushes. Returns 0, or the error that is sticky
// now.
BUFIO_API int bufio_async_writer_resume(bufio_async_writer_t *writer)
    BUFIO_MUST_USE;

// Returns how many bytes are accepted and not handed over.
BUFIO_API size_t bufio_async_writer_queued(bufio_async_writer_t *writer);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_ASYNC_WRITER_H_
