// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Handing bytes over to the kernel.
//
// `written` is the only account of what the kernel has; it moves by exactly
// what each call returned, before the next call is made. Nothing else is needed
// for "keep what was not taken": the bytes stay where they are, and a resume
// starts at at(written).
//
// Which bytes. When the buffer is full, all of it up to the last page boundary
// *of the file* goes; the rest, less than a page, moves to the front (linear)
// or stays (circular). So records of any size become calls of the same size at
// page boundaries, which the page cache likes. Flush hands over everything.
//
// Level `process`. Bytes go to their offset (pwrite), so doing it twice, once
// by the writer and once by a replay, is the same as once. The side file says
// `written` only after the kernel has them. A record that exceeds the buffer
// cannot be in it; it is announced in the side file, written behind the end,
// and accepted by the store that says `written` includes it. A replay that
// finds the announcement and not that store cuts the file back.
//
// pthread_cancel. What a call took is known to the thread that made it only, so
// it is not cancelled before that is noted; it may be where it waits for room.
//
// Level `exit`. A handler may come at any instruction and write [written,
// committed) itself, so `written` and what the kernel has may never differ when
// it does: the slot's lock is held, with signals blocked, around each call and
// its account.

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <time.h>

#include "bufio/exit_flush.h"
#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"
#include "bufio/lock_guard.h"
#include "bufio/writer_internal.h"

#define PAGE_BYTES ((uint64_t)4096)
// Of parts a call: IOV_MAX is the kernel's limit, this is the stack's.
#define PARTS_MAX 16

static_assert(BUFIO_WRITER_SLACK_BYTES >= PAGE_BYTES,
              "what an aligned drain leaves must fit beside a full record");
static_assert(PARTS_MAX <= IOV_MAX, "one writev takes all parts");

int bufio_writer_fail(bufio_writer_t *writer, int error, bool is_final) {
  if (writer->error == 0 || is_final) {
    writer->error = error;
  }
  writer->error_is_final = writer->error_is_final || is_final;
  bufio_writer_set_limit(writer);
  return error;
}

// The kernel has taken everything up to `written`: says so where it matters.
// The slot is locked.
static void note_written(bufio_writer_t *writer, uint64_t written) {
  // Relaxed: pairs with `written_hint`.
  __atomic_store_n(&writer->written, written, __ATOMIC_RELAXED);
  if (writer->journal != NULL) {
    bufio_journal_set_written(writer->journal, written);
  }
}

// What `written` was a moment ago, without the lock. It only grows: who finds
// that there is something to do asks again under the lock.
static uint64_t written_hint(const bufio_writer_t *writer) {
  return __atomic_load_n(&writer->written, __ATOMIC_RELAXED);
}

// Puts the cursor back when that makes room. The slot is locked.
static void rewind_buffer(bufio_writer_t *writer) {
  unsigned char *first = bufio_writer_at(writer, writer->written);
  size_t kept = (size_t)(writer->cursor - first);
  size_t moved = 0;
  if (writer->journal != NULL) {
    // Both halves are the same memory.
    size_t size = writer->capacity_bytes + BUFIO_WRITER_SLACK_BYTES;
    moved = first >= writer->buffer + size ? size : 0;
    writer->room_end = first - moved + size;
  } else if (first != writer->buffer) {
    moved = (size_t)(first - writer->buffer);
    memmove(writer->buffer, first, kept);
  }
  writer->commit_bias += moved;
  writer->cursor -= moved;
}

// Whether -EAGAIN goes to the caller. At level `exit` writes never wait, so it
// has to be asked whether the caller's descriptor would have.
static bool returns_would_block(const bufio_writer_t *writer) {
  if (!writer->return_would_block || !bufio_exit_may_block(writer->exit_slot)) {
    return writer->return_would_block;
  }
  int flags = bufio_system->flags(writer->callers_descriptor);
  return flags >= 0 && (flags & O_NONBLOCK) != 0;
}

// One call; EINTR dealt with. Returns the count, or -errno. The slot is locked,
// so that nobody cancels the thread before it knows what was taken.
static int64_t write_once(const bufio_writer_t *writer,
                          const struct iovec *parts, int count, size_t total,
                          uint64_t offset) {
  int64_t result = -EINTR;
  while (result == -EINTR) {
    if (writer->journal != NULL) {
      result = bufio_system->write_at(writer->descriptor, parts->iov_base,
                                      parts->iov_len, offset);
      total = parts->iov_len;
    } else if (bufio_exit_may_block(writer->exit_slot)) {
      // All signals are blocked.
      assert(count == 1);
      result = bufio_system->write_now(writer->descriptor, parts->iov_base,
                                       parts->iov_len);
    } else if (count == 1) {
      result = bufio_system->write(writer->descriptor, parts->iov_base,
                                   parts->iov_len);
    } else {
      result = bufio_system->write_vector(writer->descriptor, parts, count);
    }
  }
  // Nothing taken and no error, or more than was offered: neither is sane, and
  // going on would never end or lose bytes.
  return result == 0 || result > (int64_t)total ? -EIO : result;
}

// Waits with nothing held, so that a signal may kill, and pthread_cancel end,
// who waits.
static int wait_for_room(const bufio_writer_t *writer) {
  int status = -EINTR;
  while (status == -EINTR) {
    status = bufio_system->wait(writer->descriptor, POLLOUT);
  }
  return status < 0 ? status : 0;
}

// Before the lock is taken: a writer that a handler may have to flush must not
// block with all signals blocked.
static int wait_before(const bufio_writer_t *writer) {
  return bufio_exit_may_block(writer->exit_slot) && !returns_would_block(writer)
             ? wait_for_room(writer)
             : 0;
}

// After a call: 1 if there was no room, or somebody else took it first, and
// there is now; 0 if the result stands; or an error.
static int wait_after(const bufio_writer_t *writer, int64_t result) {
  if (result != -EAGAIN || returns_would_block(writer)) {
    return 0;
  }
  int status = wait_for_room(writer);
  return status < 0 ? status : 1;
}

static void cut_to_piece(const bufio_writer_t *writer, struct iovec *part) {
  if (bufio_exit_may_block(writer->exit_slot) &&
      part->iov_len > BUFIO_EXIT_PIECE_BYTES) {
    part->iov_len = BUFIO_EXIT_PIECE_BYTES;
  }
}

// One call of [written, until), and its account. Returns 0 when there is
// nothing left: a handler, or another thread that flushes all, may have been
// here between any two locks, so what is left is known under the lock only.
static int64_t drain_some(bufio_writer_t *writer, uint64_t until) {
  if (written_hint(writer) >= until) {
    return 0;  // Or it would wait for room that nobody needs.
  }
  int64_t result = wait_before(writer);
  bufio_exit_hold_t hold;
  if (result < 0) {
    return result;
  }
  bufio_exit_lock(writer->exit_slot, &hold);
  if (writer->written < until) {
    struct iovec part = {
        .iov_base = bufio_writer_at(writer, writer->written),
        .iov_len = (size_t)(until - writer->written),
    };
    cut_to_piece(writer, &part);
    result = write_once(writer, &part, 1, part.iov_len, writer->written);
    if (result > 0) {
      note_written(writer, writer->written + (uint64_t)result);
    }
  }
  bufio_exit_unlock(writer->exit_slot, &hold);
  int waited = wait_after(writer, result);
  return waited != 0 ? waited : result;
}

int bufio_writer_drain(bufio_writer_t *writer, uint64_t until) {
  int64_t result = 0;
  bufio_exit_hold_t hold;
  if (writer->journal != NULL && until > BUFIO_JOURNAL_OFFSET_MAX) {
    return bufio_writer_fail(writer, -EFBIG, false);
  }
  do {
    result = drain_some(writer, until);
  } while (result > 0);
  bufio_exit_lock(writer->exit_slot, &hold);
  rewind_buffer(writer);
  bufio_exit_unlock(writer->exit_slot, &hold);
  if (result < 0 && result != -EAGAIN) {
    return bufio_writer_fail(writer, (int)result, false);
  }
  bufio_writer_set_limit(writer);
  return result < 0 ? (int)result : 0;
}

int bufio_writer_make_room(bufio_writer_t *writer, size_t len) {
  assert(len <= writer->capacity_bytes);
  uint64_t end = bufio_writer_tell(writer);
  uint64_t aligned = end & ~(PAGE_BYTES - 1);
  if (aligned <= written_hint(writer) || writer->line_buffered) {
    aligned = end;
  }
  int status = bufio_writer_drain(writer, aligned);
  if (status == -EAGAIN || status == 0) {
    if (len <= (size_t)(writer->room_end - writer->cursor)) {
      return 0;
    }
    if (status == 0) {
      status = bufio_writer_drain(writer, end);
    }
  }
  if (status == 0 || status == -EAGAIN) {
    return len <= (size_t)(writer->room_end - writer->cursor) ? 0 : -EAGAIN;
  }
  return status;
}

// ---- more than the buffer holds ----

// What is left of the parts after `done` bytes, at most `max` of them.
static int parts_from(const struct iovec *parts, int count, size_t done,
                      struct iovec *out_parts, int max, size_t *out_total) {
  int filled = 0;
  *out_total = 0;
  for (int i = 0; i < count && filled < max; i++) {
    if (done >= parts[i].iov_len) {
      done -= parts[i].iov_len;
      continue;
    }
    out_parts[filled].iov_base = (unsigned char *)parts[i].iov_base + done;
    out_parts[filled].iov_len = parts[i].iov_len - done;
    *out_total += out_parts[filled].iov_len;
    filled++;
    done = 0;
  }
  return filled;
}

// One call with what is buffered and what follows it. Moves `*done` by what was
// taken of the parts.
static int64_t write_through(bufio_writer_t *writer, const struct iovec *parts,
                             int count, size_t *done) {
  struct iovec list[PARTS_MAX];
  unsigned char *first = bufio_writer_at(writer, writer->written);
  size_t buffered = (size_t)(writer->cursor - first);
  int used = buffered != 0;
  list[0].iov_base = first;
  list[0].iov_len = buffered;
  size_t following = 0;
  used += parts_from(parts, count, *done, list + used, PARTS_MAX - used,
                     &following);
  if (bufio_exit_may_block(writer->exit_slot)) {
    cut_to_piece(writer, list);
    used = 1;
  }
  int64_t result = write_once(writer, list, used, buffered + following, 0);
  if (result <= 0) {
    return result;
  }
  size_t taken = (size_t)result;
  note_written(writer, writer->written + taken);
  if (taken > buffered) {
    // The buffer is empty, and offsets go on behind the bytes that never were
    // in it.
    size_t direct = taken - buffered;
    *done += direct;
    writer->commit_bias += direct;
    bufio_writer_publish(writer, writer->cursor);
  }
  return result;
}

// Keeps what was not taken of the parts, if it fits.
static bool keep_rest(bufio_writer_t *writer, const struct iovec *parts,
                      int count, size_t done, size_t total) {
  if (total - done > (size_t)(writer->room_end - writer->cursor)) {
    return false;
  }
  unsigned char *target = writer->cursor;
  while (done < total) {
    struct iovec part;
    size_t len = 0;
    parts_from(parts, count, done, &part, 1, &len);
    memcpy(target, part.iov_base, len);
    target += len;
    done += len;
  }
  bufio_writer_publish(writer, target);
  bufio_writer_set_limit(writer);
  return true;
}

static int write_large_linear(bufio_writer_t *writer, const struct iovec *parts,
                              int count, size_t total) {
  size_t done = 0;
  int64_t result = 0;
  bufio_exit_hold_t hold;
  while (done < total && result >= 0) {
    result = wait_before(writer);
    if (result < 0) {
      break;
    }
    bufio_exit_lock(writer->exit_slot, &hold);
    result = write_through(writer, parts, count, &done);
    bufio_exit_unlock(writer->exit_slot, &hold);
    int waited = wait_after(writer, result);
    result = waited != 0 ? waited : result;
  }
  bufio_exit_lock(writer->exit_slot, &hold);
  rewind_buffer(writer);
  bufio_exit_unlock(writer->exit_slot, &hold);
  bufio_writer_set_limit(writer);
  if (result >= 0) {
    return 0;
  }
  bool is_kept = keep_rest(writer, parts, count, done, total);
  if (result != -EAGAIN) {
    (void)bufio_writer_fail(writer, (int)result, false);
  }
  return is_kept ? 0 : (int)result;
}

// The file ends behind what is accepted again.
static int cut_unfinished(bufio_writer_t *writer) {
  int status = bufio_io_truncate(writer->descriptor, writer->written);
  if (status == 0) {
    bufio_journal_set_direct_end(writer->journal, 0);
  }
  return status;
}

// One call behind the end, outside of the account, which handlers of signals do
// not look at.
static int64_t write_direct(const bufio_writer_t *writer,
                            const struct iovec *part, uint64_t offset) {
  int64_t result;
  int waited;
  do {
    result = write_once(writer, part, 1, part->iov_len, offset);
    waited = wait_after(writer, result);
  } while (waited > 0);
  return waited < 0 ? waited : result;
}

// The ring is empty.
static int write_past_ring(bufio_writer_t *writer, const struct iovec *parts,
                           int count, size_t total) {
  uint64_t end = 0;
  if (__builtin_add_overflow(writer->written, total, &end) ||
      end > BUFIO_JOURNAL_OFFSET_MAX) {
    return -EFBIG;
  }
  bufio_journal_set_direct_end(writer->journal, end);
  size_t done = 0;
  while (done < total) {
    struct iovec part;
    size_t len = 0;
    parts_from(parts, count, done, &part, 1, &len);
    int64_t result = write_direct(writer, &part, writer->written + done);
    if (result < 0) {
      // Should the cut fail too, the announcement stays, and resume, close or
      // a replay cut the file; until then nothing may be accepted.
      int cut = cut_unfinished(writer);
      if (result == -EAGAIN && cut == 0) {
        return -EAGAIN;
      }
      return bufio_writer_fail(writer, result == -EAGAIN ? cut : (int)result,
                               false);
    }
    done += (size_t)result;
  }
  bufio_exit_hold_t hold;
  bufio_exit_lock(writer->exit_slot, &hold);
  note_written(writer, end);  // Accepted: this store is the commit.
  // The ring is empty, so the cursor is free to go where offset `end` is.
  size_t ring = writer->journal->ring_bytes;
  writer->cursor = writer->buffer + end % ring;
  writer->room_end = writer->cursor + ring;
  writer->commit_bias = end - (uint64_t)(uintptr_t)writer->cursor;
  bufio_writer_publish(writer, writer->cursor);
  bufio_exit_unlock(writer->exit_slot, &hold);
  bufio_writer_set_limit(writer);
  bufio_journal_set_direct_end(writer->journal, 0);
  return 0;
}

static int write_large_process(bufio_writer_t *writer,
                               const struct iovec *parts, int count,
                               size_t total) {
  int status = bufio_writer_flush(writer);
  if (status < 0) {
    return status;
  }
  int cancel_state = bufio_hold_begin();
  status = write_past_ring(writer, parts, count, total);
  bufio_hold_end(cancel_state);
  return status;
}

int bufio_writer_write_large(bufio_writer_t *writer, const struct iovec *parts,
                             int count, size_t total) {
  return writer->journal != NULL
             ? write_large_process(writer, parts, count, total)
             : write_large_linear(writer, parts, count, total);
}

// ---- flush, sync, resume ----

int bufio_writer_flush(bufio_writer_t *writer) {
  int status = bufio_writer_begin(writer);
  if (status < 0) {
    return status;
  }
  uint64_t end = bufio_writer_tell(writer);
  return written_hint(writer) == end ? 0 : bufio_writer_drain(writer, end);
}

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int sync_flushed(bufio_writer_t *writer) {
  int status = bufio_io_sync_data(writer->descriptor);
  if (status < 0) {
    // The pages that did not reach the disk are clean now: a second call would
    // return 0. There is no way back but writing the file anew.
    return bufio_writer_fail(writer, status, true);
  }
  writer->synced = writer->written;
  writer->unsynced_records = 0;
  writer->synced_ms = writer->sync_interval_ms != 0 ? now_ms() : 0;
  return 0;
}

int bufio_writer_sync(bufio_writer_t *writer) {
  int status = bufio_writer_flush(writer);
  if (status < 0) {
    return status;
  }
  if (writer->is_child) {
    // The open file is shared with the parent, and the kernel tells an error of
    // the disk once per open file: we would take it from the parent.
    return -ECHILD;
  }
  // The kernel says it once: who is cancelled before it is noted would leave a
  // writer whose next sync is a success.
  int cancel_state = bufio_hold_begin();
  status = sync_flushed(writer);
  bufio_hold_end(cancel_state);
  return status;
}

int bufio_writer_resume(bufio_writer_t *writer) {
  int status = bufio_writer_begin(writer);
  if (status == 0 || status != writer->error || writer->error_is_final) {
    return status;
  }
  if (writer->journal != NULL &&
      bufio_journal_direct_end(writer->journal) != 0) {
    status = cut_unfinished(writer);
    if (status < 0) {
      return status;
    }
  }
  writer->error = 0;
  bufio_writer_set_limit(writer);
  return bufio_writer_flush(writer);
}

static bool is_sync_due(const bufio_writer_t *writer) {
  return (writer->sync_records != 0 &&
          writer->unsynced_records >= writer->sync_records) ||
         (writer->sync_bytes != 0 &&
          bufio_writer_tell(writer) - writer->synced >= writer->sync_bytes) ||
         (writer->sync_interval_ms != 0 &&
          now_ms() - writer->synced_ms >= writer->sync_interval_ms);
}

int bufio_writer_after_accept(bufio_writer_t *writer,
                              const unsigned char *bytes, size_t len) {
  writer->unsynced_records++;
  if (is_sync_due(writer)) {
    // Durable is what was asked for, so its failure is told now. A sync waits
    // for the disk anyhow, so it waits for room too: -EAGAIN would look like a
    // record that was not accepted.
    bool return_would_block = writer->return_would_block;
    writer->return_would_block = false;
    int status = bufio_writer_sync(writer);
    writer->return_would_block = return_would_block;
    return status;
  }
  if (writer->line_buffered && bytes != NULL &&
      memrchr(bytes, '\n', len) != NULL) {
    // It was accepted, and who is told of an error would write it again. A
    // sticky one comes out of the next call.
    (void)bufio_writer_flush(writer);
  }
  return 0;
}
