// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// bufio: buffered file I/O; what its headers have in common.
//
// For: programs that read and write much, and those that must know what became
// of their bytes. Not for: wide characters, locales, text modes, temporary
// files, seeking writers (mapped_file does random access).
//
//   reader.h         lines, bytes, records and views of a descriptor
//   writer.h         bytes and records to a descriptor, at a durability level
//   format.h         integers, hexadecimal, floating point into a writer
//   locked.h         a writer that threads share
//   group_commit.h   a writer that threads share, and one fdatasync for many
//   async_writer.h   a writer whose system calls another thread makes
//   bufio_replace.h  a whole new file in place of an old one, or nothing
//   journal.h        what a killed writer of level `process` left, put in place
//   mapped_file.h    windows into files of any size; no death by SIGBUS
//   ring.h           circular byte buffers
//   scan.h           the search for line ends
//
// Failure: functions that can fail return 0 or a negative errno and leave
// `errno` alone; those that deliver something return 1 when they did, 0 at the
// end of the input. Nothing aborts on bad input.
//
// Threads: an object is one thread's at a time, where its header says nothing
// else; different objects are independent.
// Cancellation (pthread_cancel): objects that threads share, locked.h,
// group_commit.h and async_writer.h, do not let a thread be cancelled inside of
// a call. With others a thread may be where the kernel waits, but a writer's
// thread only where poll(2) waits for room (descriptors with O_NONBLOCK, and
// level `exit`): a write(2) or fdatasync(2) is finished, and accounted for. The
// object is then to be closed, no more. Cancelled inside of an `open`, or the
// close of a reader, it leaves what it had taken.
// Signals: only `bufio_exit_flush_all` (writer.h) may be called in handlers.
// fork: the child never writes bytes that the parent had buffered; each header
// says what the child may do. (By handlers of `pthread_atfork`. `_Fork`, a raw
// `clone` and `vfork` do not run them: their child writes nothing of the
// parent's when it exits or is killed, but must not touch the parent's
// objects.)
//
// Linux, 64-bit.

#ifndef MY_ALLOC_BUFIO_BUFIO_H_
#define MY_ALLOC_BUFIO_BUFIO_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BUFIO_API __attribute__((visibility("default")))
#define BUFIO_MUST_USE __attribute__((warn_unused_result))
#define BUFIO_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define BUFIO_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
// For the inline functions: they are the point of this library.
#define BUFIO_INLINE static inline __attribute__((always_inline, unused))

// Bytes that belong to somebody else.
typedef struct bufio_slice {
  const unsigned char *data;
  size_t len;
} bufio_slice_t;

// An object that the child of a fork must put in order. For our own structs.
typedef struct bufio_fork_node {
  struct bufio_fork_node *next;  // Guarded by the lock of the list.
  struct bufio_fork_node *previous;
  void (*in_child)(struct bufio_fork_node *node);  // Immutable.
} bufio_fork_node_t;

// What accepted bytes survive. "Accepted" is: the call returned success.
typedef enum bufio_durability {
  // Nothing: they are in a buffer until flush or close.
  BUFIO_DURABILITY_NONE,
  // The end of the process by exit, quick_exit, abort or a fatal signal that
  // can be caught; not SIGKILL, not `_exit`.
  BUFIO_DURABILITY_EXIT,
  // The death of the process by anything, SIGKILL too; not that of the system.
  BUFIO_DURABILITY_PROCESS,
  // The death of the system, once `bufio_writer_sync` or the sync policy said
  // so.
  BUFIO_DURABILITY_POWER,
} bufio_durability_t;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_BUFIO_H_
