// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Writes a heaplog (heaplog.h) from inside a running program, malloc included.
// It knows nothing of who records or why: times, addresses and ids come from
// the caller. It is not a general logging library: see bufio for that.
//
//   heaplog_writer_t *writer;
//   heaplog_writer_options_t options = {
//       .path = "run.heaplog", .start_monotonic_ns = now, ...};
//   if (heaplog_writer_open(&options, &writer) != 0) { ... }
//   heaplog_stream_t *stream;  // One a thread.
//   if (heaplog_stream_open(writer, now, gettid(), "main", &stream) == 0) {
//     heaplog_append_alloc(stream, now, address, 100, 112, stack_id);
//     heaplog_stream_close(stream, now);
//   }
//
// What is promised:
// - Every append that returned true survives SIGKILL at any later instruction
//   (not a power cut). The file is a valid log at every instant.
// - Nothing here allocates with malloc, takes a lock, calls stdio or changes
//   errno. An append is a few stores to mapped memory; every 64 KiB it makes
//   some system calls.
// - A full disk, a lowered RLIMIT_FSIZE or a closed descriptor never raises a
//   signal and never stops the program: appends return false, the events are
//   counted as lost, the count is in the log, and writing goes on when there is
//   space again. (Truncating the file under a running writer is the one thing
//   that can raise SIGBUS.)
//
// Threads: a stream is used by one thread at a time; different streams need no
// synchronisation, and opening and closing streams is thread-safe and
// lock-free. Signals: a handler that interrupts an append may append to the
// same stream; its event is then counted as lost, and the log stays valid.
// Fork: the child must not write to its parent's log. Where the kernel can wipe
// memory on fork (Linux 4.14), appends in the child return false by themselves;
// call heaplog_writer_forget() in the child first thing all the same.

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_WRITER_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_WRITER_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "leakcheck/heaplog.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heaplog_writer heaplog_writer_t;
typedef struct heaplog_stream heaplog_stream_t;

typedef struct heaplog_writer_options {
  const char *path;             // Copied; made absolute at once.
  uint64_t start_monotonic_ns;  // CLOCK_MONOTONIC now; becomes time 0.
  uint64_t start_unix_ns;       // CLOCK_REALTIME now.
  uint64_t pid;
  uint64_t page_bytes;
} heaplog_writer_options_t;

// Creates the log, mode 0600. An existing file of that name is unlinked, not
// overwritten, so that another process still writing to it is not disturbed;
// a non-empty one that is not a heaplog is left alone.
// Returns 0 and sets *out_writer, or: -EINVAL (an option is out of range, or
// `path` names something that is not a regular file), -ENAMETOOLONG, -EEXIST
// (`path` holds something that is not a heaplog), -ENOMEM, or what open(2) or
// fallocate(2) failed with; then no file is left behind.
int heaplog_writer_open(const heaplog_writer_options_t *options,
                        heaplog_writer_t **out_writer)
    __attribute__((warn_unused_result));

// Unmaps and closes everything; the log stays as it is (append an END first).
// No stream of this writer may be in use, then or later. A process that is
// about to exit need not call it. NULL is a no-op.
void heaplog_writer_close(heaplog_writer_t *writer);

// In a forked child: drops all that the child inherited of its parent's log,
// without touching the file. All appends to streams of this writer return
// false from then on. The writer's own memory stays, so stale stream pointers
// are harmless. NULL is a no-op.
void heaplog_writer_forget(heaplog_writer_t *writer);

// Returns 0, or the -errno that first kept an event from being written. It
// stays when space comes back.
int heaplog_writer_error(const heaplog_writer_t *writer);

// Returns how many events are counted as lost so far.
uint64_t heaplog_writer_lost_count(const heaplog_writer_t *writer);

// Begins a thread's events. `name` may be NULL; 15 bytes of it are kept. Uses
// no disk space until the first append, and takes over the partly filled chunk
// of a stream that was closed, if there is one.
// Returns 0 and sets *out_stream, which lives until heaplog_stream_close(), or
// -EAGAIN when 65,536 streams are open, -ENOMEM, or -ESTALE in a forked child.
int heaplog_stream_open(heaplog_writer_t *writer, uint64_t time_ns,
                        uint64_t tid, const char *name,
                        heaplog_stream_t **out_stream)
    __attribute__((warn_unused_result));

// Ends the thread's events. NULL is a no-op.
void heaplog_stream_close(heaplog_stream_t *stream, uint64_t time_ns);

// The appends. Each returns true when the record is in the file, false when it
// is lost (disk full, or not ours after a fork) and counted.
//
// `time_ns` is absolute CLOCK_MONOTONIC. A stream's times never go back: a
// smaller one is raised to the stream's last, and the first ones after a change
// of chunk to the time when the youngest chunk was begun. For the merged order
// to be causally right, stamp a free before the block becomes free, an
// allocation after it was handed out, and append each before anybody else can
// see its effect.

bool heaplog_append_alloc(heaplog_stream_t *stream, uint64_t time_ns,
                          uint64_t address, uint64_t size_bytes,
                          uint64_t usable_bytes, uint32_t stack_id);
bool heaplog_append_free(heaplog_stream_t *stream, uint64_t time_ns,
                         uint64_t address, uint32_t stack_id);
bool heaplog_append_resize(heaplog_stream_t *stream, uint64_t time_ns,
                           uint64_t address, uint64_t size_bytes,
                           uint64_t usable_bytes, uint32_t stack_id);
bool heaplog_append_map(heaplog_stream_t *stream, uint64_t time_ns,
                        uint64_t address, uint64_t size_bytes);
bool heaplog_append_unmap(heaplog_stream_t *stream, uint64_t time_ns,
                          uint64_t address, uint64_t size_bytes);
bool heaplog_append_sample(heaplog_stream_t *stream, uint64_t time_ns,
                           uint64_t resident_bytes);
// Reports events that the caller itself had to drop; also adds `count` to the
// log's total.
bool heaplog_append_lost(heaplog_stream_t *stream, uint64_t time_ns,
                         uint64_t count);
bool heaplog_append_end(heaplog_stream_t *stream, uint64_t time_ns);

// Definitions. They belong before the first event that uses them; a stack may
// come later, readers then know it only at the end.

// Defines stack `stack_id` as the frame `instruction_pointer` called from stack
// `parent_id` (0: from nowhere). 0 <= parent_id < stack_id <=
// HEAPLOG_STACK_ID_MAX, else false. May be repeated with the same values.
// Instruction pointer 0 stands for outer frames that are not known: of a stack
// that was cut off.
bool heaplog_append_stack(heaplog_stream_t *stream, uint32_t stack_id,
                          uint32_t parent_id, uint64_t instruction_pointer);
// `module->load_time_ns` is absolute. False also when start > end address.
bool heaplog_append_module_load(heaplog_stream_t *stream,
                                const heaplog_module_t *module);
bool heaplog_append_module_unload(heaplog_stream_t *stream, uint64_t time_ns,
                                  uint32_t module_id);
// `command_line` as in /proc/self/cmdline: arguments, each with its NUL.
bool heaplog_append_process(heaplog_stream_t *stream, const char *executable,
                            const char *command_line,
                            size_t command_line_bytes);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_WRITER_H_
