// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// writer: buffered writing to a descriptor, at a durability level.
//
// For: files, pipes, sockets and terminals written as bytes, records or pieces.
// Not for: writers that seek (mapped_file), or threads that share one
// (locked.h, async_writer.h, group_commit.h).
//
//   bufio_writer_t writer;
//   bufio_writer_options_t options = {.durability = BUFIO_DURABILITY_PROCESS};
//   int status = bufio_writer_open(&writer, "events.log", &options);
//   if (status == 0) {
//     status = bufio_writer_write(&writer, record, record_bytes);
//     int closed = bufio_writer_close(&writer);
//     status = status < 0 ? status : closed;
//   }
//
// Acceptance. A call that writes is accepted whole (0) or fails, and then none
// of its bytes are taken. The one exception: of a call with more bytes than the
// buffer holds a prefix may be accepted; `bufio_writer_tell` counts what was.
// A line-buffered writer that cannot hand an accepted line over returns 0; the
// line goes with the next call, which also returns the error if it is sticky.
// Accepted, not durable: with a sync policy a write that syncs waits even if
// `return_would_block` is set, and returns the sync's error though its record
// was accepted; the error is sticky, so do not write the record again.
//
// Errors. When the kernel refuses bytes (ENOSPC, EIO, EPIPE, ...), exactly the
// bytes that it did not take stay in the buffer, and the error is sticky: every
// later write, flush, sync and close returns it. `bufio_writer_resume` tries
// again from the first byte not taken, after the cause was removed. A failed
// fsync or fdatasync is final: the kernel has dropped the pages and would say
// 0 next time, so resume returns the error too.
// EINTR, and short counts, are gone on from. EAGAIN: see the options.
//
// Levels (bufio.h):
// - `exit`: a handler is installed for each signal that would kill the process,
//   if its disposition is the default one when the first such writer opens; it
//   writes what is committed, then lets the default action follow; for readers,
//   and for threads that are writing, it waits for a second at most. Where the
//   kernel ignores the signal (process 1 of a container), all goes on. Programs
//   with handlers of their own call `bufio_exit_flush_all`. exit and quick_exit
//   wait as long as it takes, and can be killed meanwhile.
//   A named pipe or pseudo terminal that is attached is opened anew, by way of
//   /proc, so that no write waits with signals blocked; the child of a fork
//   does so when it first writes, not before. So dup2(2) over the descriptor
//   that was attached does not turn the writer: close and attach again.
// - `process`: the buffer is a circular one in a side file mapped shared,
//   `<path>.bufio-journal`. A record is committed by one store of 64 bits. The
//   next open of the file, or `bufio_journal_replay`, appends to the file what
//   was committed and did not get there; the side file of a writer that
//   closed is gone. Needs a regular file, one writer at a time (-EBUSY): the
//   file is locked by flock(2) until close, whatever its name. A killed
//   writer's side file is found under every name of the file where the file
//   system has extended attributes; elsewhere use one name.
// - `power`: see the sync policy. Creating a file syncs its folder.
//
// Threads: one at a time. fork: the child finds the buffer empty and may write
// bytes of its own, at levels `none`, `exit` and `power`, but not sync them
// (-ECHILD; close flushes only): the kernel tells an error of the disk once for
// the open file that both have, and it is the parent's. At level `process`
// every call in the child returns -ECHILD, and close gives back memory only.
// Not between reserve and commit, nor in a putter. And not while a writer is on
// the stack of another thread, unless the child execs: it has the writer in its
// lists, but not the thread.

#ifndef MY_ALLOC_BUFIO_WRITER_H_
#define MY_ALLOC_BUFIO_WRITER_H_

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

// What one write(2) hands over, unless options say otherwise.
#define BUFIO_WRITER_BYTES ((size_t)131072)
// Of a caller's memory, at least.
#define BUFIO_WRITER_MEMORY_MIN ((size_t)16)

// All zero is the default; a NULL pointer is all zero.
typedef struct bufio_writer_options {
  bufio_durability_t durability;
  // The caller's buffer, used until close. Not at level `process`. NULL: own.
  void *memory;
  size_t memory_bytes;
  // Of own memory; at level `process` rounded up to pages. 0: the default.
  size_t buffer_bytes;
  // `open`: keep what the file has and write behind it (O_APPEND; at level
  // `process` the end is found once). Without it the file is emptied.
  bool append;
  // `open`: -EEXIST if the file exists.
  bool exclusive;
  // `open`: permissions of a new file. 0: 0666. The umask applies.
  unsigned int mode;
  // Flush whenever a line feed was written.
  bool line_buffered;
  // A descriptor that has O_NONBLOCK: return -EAGAIN, not sticky, nothing lost,
  // rather than wait in poll(2). What has not waits, at every level.
  bool return_would_block;
  // Level `process`: the side file, NULL: `<path>.bufio-journal`. `attach`
  // needs it.
  const char *journal_path;
  // Level `power`: a write that makes it this many unsynced calls, or finds
  // that the last sync is this long ago, syncs before it returns; 1 record is
  // sync on every call. All 0: only `bufio_writer_sync` and close sync.
  uint64_t sync_records;
  uint64_t sync_bytes;
  uint64_t sync_interval_ms;
} bufio_writer_options_t;

struct bufio_exit_slot;
struct bufio_journal;

// Placed by the caller, not to be moved while open. The fields are for the
// inline functions below. Offsets are file positions, or counts from 0 where
// the descriptor has none.
typedef struct bufio_writer {
  unsigned char *cursor;    // Where the next byte goes.
  unsigned char *limit;     // Inline functions write below it only; it is
                            // `cursor` when each call has to be looked at.
  uint64_t *commit_word;    // In the side file: offset of the end of what was
                            // accepted. NULL below level `process`, where
                            // `cursor` says it.
  uint64_t commit_bias;     // cursor + commit_bias is that offset.
  unsigned char *room_end;  // The end of the room there is.
  unsigned char *buffer;
  uint64_t written;  // Offset of the first buffered byte.
  size_t capacity_bytes;
  struct bufio_journal *journal;
  bufio_fork_node_t fork_node;
  struct bufio_exit_slot *exit_slot;  // Of levels `exit` and `process`.
  uint64_t sync_records;
  uint64_t sync_bytes;
  uint64_t sync_interval_ms;
  uint64_t unsynced_records;
  uint64_t synced;     // Offset up to which the disk has it.
  uint64_t synced_ms;  // When.
  int descriptor;
  int callers_descriptor;  // Of `attach`, else -1. Where another open file of
                           // the same pipe is written, they differ.
  int error;               // The sticky error, or 0.
  bufio_durability_t durability;
  bool error_is_final;
  bool owns_memory;
  bool owns_descriptor;
  bool line_buffered;
  bool return_would_block;
  bool is_foreign;  // This process is a child of the one that opened, and may
                    // do nothing.
  bool is_child;    // The same, and it may write.
  bool opens_anew;  // In the child: its first call opens anew what is attached.
} bufio_writer_t;

// Opens the file for writing, creating it. If a side file of a killed writer is
// there, it is replayed first (whatever the level, unless the file is to be
// emptied: then it is removed, once the file is empty). Errors of open(2),
// -ENOMEM, -EINVAL (options).
// -EBUSY: a writer of level `process` has the file; also, unless it is opened
// to append below level `process`, if anybody holds its flock(2); and at level
// `process`, if the side file of a writer that has closed cannot be removed.
// -EPROTO: there is a file of the side file's name that is damaged, or not of
// this file, which was removed or renamed, say. Both are left as they are: put
// the tail in place with `bufio_journal_replay`, or remove the side file.
// -EACCES, beside that of open(2): another name's side file belongs to the
// owner of this file, who is somebody else; or may be there, but who may not
// read the file cannot know where. Level `process`, also errors of setxattr(2),
// where the file system has attributes: -ENOSPC, -EDQUOT, ... Nothing is left
// open on failure.
BUFIO_API int bufio_writer_open(bufio_writer_t *writer, const char *path,
                                const bufio_writer_options_t *options)
    BUFIO_MUST_USE;

// Writes to `descriptor`, which stays the caller's, from where it stands. Level
// `process`: the descriptor is a regular file open for reading and writing,
// without O_APPEND, and stands at its end, else -EINVAL; it and `journal_path`
// are replayed first. The file is locked through an open file of our own (by
// way of /proc), and close moves the descriptor behind the last byte written.
// Errors as above, -EBADF; at level `exit` also for what is not open for
// writing.
BUFIO_API int bufio_writer_attach(bufio_writer_t *writer, int descriptor,
                                  const bufio_writer_options_t *options)
    BUFIO_MUST_USE;

// Flushes, at level `power` syncs, and gives back what `open` took. Returns the
// sticky error if there is one, or that of close(2); the writer is closed all
// the same, and what was not written is lost but at level `process`, where the
// side file stays and the next open puts it in place. NULL, and a zeroed or
// closed writer, are 0.
BUFIO_API int bufio_writer_close(bufio_writer_t *writer);

// Hands over everything that was accepted to the kernel: 0, or the error, which
// is sticky. -EAGAIN as the options say.
BUFIO_API int bufio_writer_flush(bufio_writer_t *writer);

// Flushes, and waits until the disk has it, at any level. An error of the sync
// is final.
BUFIO_API int bufio_writer_sync(bufio_writer_t *writer) BUFIO_MUST_USE;

// Forgets the sticky error, which the caller has cured, and flushes: no byte is
// lost or repeated. Returns 0, or the error that is sticky now. 0 if there was
// none.
BUFIO_API int bufio_writer_resume(bufio_writer_t *writer) BUFIO_MUST_USE;

// Returns the sticky error, or 0.
BUFIO_INLINE int bufio_writer_error(const bufio_writer_t *writer) {
  return writer->error;
}

// Returns the offset behind the last byte accepted.
BUFIO_INLINE uint64_t bufio_writer_tell(const bufio_writer_t *writer) {
  return (uint64_t)(uintptr_t)writer->cursor + writer->commit_bias;
}

// Returns the bytes accepted but not handed over: after an error, exactly those
// that the kernel did not take. Good until the next call.
BUFIO_API bufio_slice_t bufio_writer_unwritten(const bufio_writer_t *writer);

// For the inline functions.
BUFIO_API int bufio_writer_write_slow(bufio_writer_t *writer, const void *bytes,
                                      size_t len);
BUFIO_API int bufio_writer_putc_slow(bufio_writer_t *writer,
                                     unsigned char byte);
BUFIO_API unsigned char *bufio_writer_reserve_slow(bufio_writer_t *writer,
                                                   size_t len);
BUFIO_API int bufio_writer_commit_slow(bufio_writer_t *writer, size_t len);

// Accepts what lies before `cursor`. The one store that matters to a handler,
// or to a replay; it comes after the bytes, whoever looks.
BUFIO_INLINE void bufio_writer_publish(bufio_writer_t *writer,
                                       unsigned char *cursor) {
  // Release: pairs with the acquire of the exit handler.
  __atomic_store_n(&writer->cursor, cursor, __ATOMIC_RELEASE);
  if (writer->commit_word != NULL) {
    // Release: the replay sees no word without its bytes.
    __atomic_store_n(writer->commit_word,
                     (uint64_t)(uintptr_t)cursor + writer->commit_bias,
                     __ATOMIC_RELEASE);
  }
}

// Copies 1 to 128 bytes without a call: overlapping pieces of a fixed size.
BUFIO_INLINE void bufio_copy_small(unsigned char *target,
                                   const unsigned char *source, size_t len) {
  if (__builtin_constant_p(len)) {
    __builtin_memcpy(target, source, len);
    return;
  }
  // Compilers warn of the pieces that a short array has no room for, though
  // those branches are not taken; this makes them forget what array it is.
  __asm__("" : "+r"(source));
  if (BUFIO_LIKELY(len >= 32)) {
    // The two middle pieces are the first or last one again where those
    // suffice: cheaper than a branch that cannot be foreseen.
    size_t second = len < 64 ? len - 32 : 32;
    size_t third = len < 64 ? 0 : len - 64;
    __builtin_memcpy(target, source, 32);
    __builtin_memcpy(target + second, source + second, 32);
    __builtin_memcpy(target + third, source + third, 32);
    __builtin_memcpy(target + len - 32, source + len - 32, 32);
  } else if (len >= 16) {
    __builtin_memcpy(target, source, 16);
    __builtin_memcpy(target + len - 16, source + len - 16, 16);
  } else if (len >= 8) {
    __builtin_memcpy(target, source, 8);
    __builtin_memcpy(target + len - 8, source + len - 8, 8);
  } else if (len >= 4) {
    __builtin_memcpy(target, source, 4);
    __builtin_memcpy(target + len - 4, source + len - 4, 4);
  } else {
    target[0] = source[0];
    target[len / 2] = source[len / 2];
    target[len - 1] = source[len - 1];
  }
}

// ---- bytes and records ----

// Accepts bytes[0, len), one record: 0, or the error. See "Acceptance" above.
BUFIO_INLINE int bufio_writer_write(bufio_writer_t *writer, const void *bytes,
                                    size_t len) {
  unsigned char *cursor = writer->cursor;
  size_t room = (size_t)(writer->limit - cursor);
  // `len - 1`: 0 goes the slow way too.
  if (BUFIO_LIKELY(len <= room && len - 1 < 128)) {
    bufio_copy_small(cursor, (const unsigned char *)bytes, len);
    bufio_writer_publish(writer, cursor + len);
    return 0;
  }
  return bufio_writer_write_slow(writer, bytes, len);
}

// Accepts a byte: 0, or the error.
BUFIO_INLINE int bufio_writer_putc(bufio_writer_t *writer, unsigned char byte) {
  unsigned char *cursor = writer->cursor;
  if (BUFIO_LIKELY(cursor != writer->limit)) {
    *cursor = byte;
    bufio_writer_publish(writer, cursor + 1);
    return 0;
  }
  return bufio_writer_putc_slow(writer, byte);
}

// Accepts a string without its NUL. No line feed is added.
BUFIO_INLINE int bufio_writer_puts(bufio_writer_t *writer, const char *text) {
  return bufio_writer_write(writer, text, __builtin_strlen(text));
}

// Accepts the parts as one record. -EINVAL if their lengths overflow.
BUFIO_API int bufio_writer_write_vector(bufio_writer_t *writer,
                                        const struct iovec *parts,
                                        int count) BUFIO_MUST_USE;

// Accepts formatted text as one record. -EINVAL, -EOVERFLOW or -ENOMEM where
// vsnprintf fails.
BUFIO_API int bufio_writer_printf(bufio_writer_t *writer, const char *format,
                                  ...) __attribute__((format(printf, 2, 3)));
BUFIO_API int bufio_writer_vprintf(bufio_writer_t *writer, const char *format,
                                   va_list arguments)
    __attribute__((format(printf, 2, 0)));

// ---- writing in place ----

// Returns room for `len` bytes in the buffer, which `bufio_writer_commit`
// accepts; until then nobody sees them. Good until the next call. NULL: the
// sticky error, or `bufio_writer_error` is 0 and `len` exceeds the buffer or
// -EAGAIN is to be returned.
BUFIO_INLINE unsigned char *bufio_writer_reserve(bufio_writer_t *writer,
                                                 size_t len) {
  unsigned char *cursor = writer->cursor;
  if (BUFIO_LIKELY(len <= (size_t)(writer->limit - cursor))) {
    return cursor;
  }
  return bufio_writer_reserve_slow(writer, len);
}

// Accepts the first `len` bytes of what was reserved, as one record: 0, or,
// with a sync policy, the error of the sync, with the bytes accepted.
BUFIO_INLINE int bufio_writer_commit(bufio_writer_t *writer, size_t len) {
  if (BUFIO_LIKELY(len <= (size_t)(writer->limit - writer->cursor))) {
    bufio_writer_publish(writer, writer->cursor + len);
    return 0;
  }
  return bufio_writer_commit_slow(writer, len);
}

// A writer's cursor, for loops that put byte after byte: in a local variable it
// stays in a register.
//
//   bufio_putter_t putter = bufio_putter_begin(&writer);
//   for (...) {
//     bufio_putter_putc(&putter, byte);
//   }
//   status = bufio_putter_end(&putter);  // Accepts what was put.
//
// Between begin and end the writer itself is not to be used. Bytes are accepted
// in pieces of the buffer's size, and by end. After an error bytes are ignored
// and end returns it.
typedef struct bufio_putter {
  unsigned char *cursor;
  unsigned char *limit;
  bufio_writer_t *writer;
} bufio_putter_t;

BUFIO_API unsigned char *bufio_putter_limit(bufio_writer_t *writer);
BUFIO_API void bufio_putter_putc_slow(bufio_putter_t *putter,
                                      unsigned char byte);

BUFIO_INLINE bufio_putter_t bufio_putter_begin(bufio_writer_t *writer) {
  bufio_putter_t putter = {writer->cursor, bufio_putter_limit(writer), writer};
  return putter;
}

BUFIO_INLINE void bufio_putter_putc(bufio_putter_t *putter,
                                    unsigned char byte) {
  if (BUFIO_UNLIKELY(putter->cursor == putter->limit)) {
    // A copy: nobody else has the address of the putter, so it can be in
    // registers.
    bufio_putter_t copy = *putter;
    bufio_putter_putc_slow(&copy, byte);
    *putter = copy;
    return;
  }
  *putter->cursor++ = byte;
}

BUFIO_API int bufio_putter_finish(bufio_writer_t *writer,
                                  unsigned char *cursor);

BUFIO_INLINE int bufio_putter_end(bufio_putter_t *putter) {
  return bufio_putter_finish(putter->writer, putter->cursor);
}

// ---- the end of the process ----

// Writes what writers of levels `exit` and `process` have accepted, for a
// program's own signal handlers. Async-signal-safe; may be called more than
// once, and while other threads write. Returns 0; what a writer's bytes were
// refused with (the first one's); or -ETIMEDOUT if a reader or another thread
// kept it waiting: it gives up after a second in all. What is left stays in the
// buffers. exit, quick_exit and fatal signals need no call.
BUFIO_API int bufio_exit_flush_all(void);

// Returns NULL, or a text naming the first broken invariant. For tests.
BUFIO_API const char *bufio_writer_check(const bufio_writer_t *writer);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_WRITER_H_
