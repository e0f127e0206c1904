// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Reads a heaplog (heaplog.h), believing no byte of it: every chunk's checksum
// is verified before an event of it is delivered, and nothing in a file makes
// the reader crash, hang or allocate without bound.
//
//   heaplog_reader_t *reader;
//   heaplog_error_t error;
//   if (heaplog_reader_open("run.heaplog", &reader, &error) != 0) {
//     errx(1, "%s", error.text);
//   }
//   heaplog_event_t event;
//   while (heaplog_reader_next(reader, &event)) { ... }
//   if (heaplog_reader_status(reader, &error) != 0) {
//     warnx("byte %" PRIu64 ": %s", error.byte_offset, error.text);
//   }
//   heaplog_reader_close(reader);
//
// Order: events of all threads come merged by time; at equal times frees and
// unmaps before maps and allocations, then by thread. One thread's events keep
// the order they were written in.
//
// Damage: events are delivered up to the earliest time at which one could be
// missing; then the reader stops with an error. What was delivered is exactly
// the beginning of what the whole log would have given.
//
// Unfinished logs: a log whose process was killed is whole, without an END. A
// log that is still being written can be read; its end is then ragged.
//
// Memory: one chunk (64 KiB) a thread alive at the point of reading, 4 bytes a
// chunk of the file, and the definitions (16 bytes a stack node; at most 256
// MiB for stacks). Events are not held.
//
// Threads: a reader is used by one thread at a time.

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_READER_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_READER_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "leakcheck/heaplog.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heaplog_reader heaplog_reader_t;

// Opens the log at `path` and checks its header. Returns 0 and sets
// *out_reader, or -errno: what open(2) or pread(2) failed with, -ENOMEM,
// -EINVAL (not a heaplog), -EPROTONOSUPPORT (another major version), -EPROTO
// (damaged header). `out_error` may be NULL; it is set in either case.
int heaplog_reader_open(const char *path, heaplog_reader_t **out_reader,
                        heaplog_error_t *out_error)
    __attribute__((warn_unused_result));

// Frees the reader and all that it lent. NULL is a no-op.
void heaplog_reader_close(heaplog_reader_t *reader);

// Gives the next event. Returns false at the end of the log and at an error:
// heaplog_reader_status() tells which.
bool heaplog_reader_next(heaplog_reader_t *reader, heaplog_event_t *out_event);

// The same for up to `capacity` events at once, which is faster. Returns how
// many were stored; less than `capacity` only where heaplog_reader_next() would
// return false.
size_t heaplog_reader_read(heaplog_reader_t *reader,
                           heaplog_event_t *out_events, size_t capacity);

// Returns 0 while no error was met, else -EPROTO for damage and for more than a
// log can have (HEAPLOG_ERROR_LIMIT), -ENOMEM, or what pread(2) failed with.
// `out_error` may be NULL.
int heaplog_reader_status(const heaplog_reader_t *reader,
                          heaplog_error_t *out_error);

// Starts over from the first event, forgetting definitions and errors. Returns
// 0, or -errno as heaplog_reader_open().
int heaplog_reader_rewind(heaplog_reader_t *reader)
    __attribute__((warn_unused_result));

// Returns what is known so far; complete once heaplog_reader_next() has
// returned false. The strings live until close or rewind.
const heaplog_info_t *heaplog_reader_info(const heaplog_reader_t *reader);

// Definitions are those met so far, and all once heaplog_reader_next() has
// returned false. A stack may be defined a little after its first use, so ask
// for stacks at the end.

// Stores the instruction pointers of a stack, innermost first, cut at
// `capacity`. Returns how many were stored: 0 for an unknown id; fewer frames
// than there were when an ancestor's definition was lost.
size_t heaplog_reader_stack(const heaplog_reader_t *reader, uint32_t stack_id,
                            uint64_t *out_instruction_pointers,
                            size_t capacity);

// Gives one node of the stack tree: its own frame and the stack that called it
// (0: none). Returns false for an unknown id.
bool heaplog_reader_stack_node(const heaplog_reader_t *reader,
                               uint32_t stack_id,
                               uint64_t *out_instruction_pointer,
                               uint32_t *out_parent_id);

// Returns one more than the greatest stack id met.
uint32_t heaplog_reader_stack_id_end(const heaplog_reader_t *reader);

// Modules in the order met. `out_module->path` lives until close or rewind.
// The getter returns false when `index` is not below the count.
size_t heaplog_reader_module_count(const heaplog_reader_t *reader);
bool heaplog_reader_module(const heaplog_reader_t *reader, size_t index,
                           heaplog_module_t *out_module);

// Threads by the index that events carry. The getter returns false when
// `index` is not below the count.
size_t heaplog_reader_thread_count(const heaplog_reader_t *reader);
bool heaplog_reader_thread(const heaplog_reader_t *reader, size_t index,
                           heaplog_thread_t *out_thread);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_READER_H_
