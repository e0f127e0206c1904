// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Beginning and end of a writer.
//
// Order of opening: memory, the file and what a killed writer left of it
// (writer_file.c), the side file of our own, the list for fork, the slot for
// exit. Whatever fails, what was done before it is
// undone in reverse.
//
// In the child of a fork a writer is emptied, not flushed: the bytes are the
// parent's, who will write them. What is shared with the parent (the side file,
// its lock) is let go.

#include "bufio/writer.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/major.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "bufio/exit_flush.h"
#include "bufio/fork_guard.h"
#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"
#include "bufio/lock_guard.h"
#include "bufio/writer_internal.h"

static const bufio_writer_options_t default_options;

static void forget(bufio_writer_t *writer) {
  memset(writer, 0, sizeof(*writer));
  writer->descriptor = -1;
  writer->callers_descriptor = -1;
}

// ---- fork ----

static void writer_in_child(bufio_fork_node_t *node) {
  bufio_writer_t *writer =
      (bufio_writer_t *)((unsigned char *)node -
                         offsetof(bufio_writer_t, fork_node));
  if (writer->journal != NULL) {
    bufio_journal_abandon(writer->journal);
    if (writer->owns_descriptor) {
      // The lock is the open file's: our copy would outlive the parent.
      (void)bufio_system->close(writer->descriptor);
      writer->descriptor = -1;
      writer->owns_descriptor = false;
    }
    writer->is_foreign = true;
    writer->commit_word = NULL;
    writer->commit_bias = bufio_writer_tell(writer);
    writer->cursor = NULL;
    writer->limit = NULL;
    writer->room_end = NULL;
    return;
  }
  if (writer->callers_descriptor >= 0 && writer->owns_descriptor) {
    // Whoever closes the pipe in the child does not know of ours, and a reader
    // would wait for its end. Who writes does know of the writer.
    (void)bufio_system->close(writer->descriptor);
    writer->descriptor = writer->callers_descriptor;
    writer->owns_descriptor = false;
    writer->opens_anew = true;
  }
  writer->is_child = true;
  writer->commit_bias = writer->written - (uint64_t)(uintptr_t)writer->buffer;
  bufio_writer_publish(writer, writer->buffer);
  bufio_writer_set_limit(writer);
}

// ---- memory ----

static size_t round_up_to_page(size_t bytes) {
  return (bytes + BUFIO_WRITER_SLACK_BYTES - 1) &
         ~(BUFIO_WRITER_SLACK_BYTES - 1);
}

static int init_memory(bufio_writer_t *writer,
                       const bufio_writer_options_t *options) {
  if (options->memory != NULL) {
    if (options->memory_bytes < BUFIO_WRITER_MEMORY_MIN ||
        options->durability == BUFIO_DURABILITY_PROCESS) {
      return -EINVAL;
    }
    writer->buffer = options->memory;
    writer->capacity_bytes = options->memory_bytes;
    writer->room_end = writer->buffer + writer->capacity_bytes;
    return 0;
  }
  size_t bytes =
      options->buffer_bytes != 0 ? options->buffer_bytes : BUFIO_WRITER_BYTES;
  if (bytes > BUFIO_JOURNAL_RING_BYTES_MAX / 2) {
    return -EINVAL;
  }
  writer->capacity_bytes = round_up_to_page(bytes);
  if (options->durability == BUFIO_DURABILITY_PROCESS) {
    return 0;  // The side file is the memory.
  }
  int status = 0;
  size_t size = writer->capacity_bytes + BUFIO_WRITER_SLACK_BYTES;
  writer->buffer =
      bufio_system->map(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &status);
  if (writer->buffer == NULL) {
    return status;
  }
  writer->owns_memory = true;
  writer->room_end = writer->buffer + size;
  return 0;
}

static void deinit_memory(bufio_writer_t *writer) {
  if (writer->owns_memory) {
    (void)bufio_system->unmap(
        writer->buffer, writer->capacity_bytes + BUFIO_WRITER_SLACK_BYTES);
  }
}

static int init(bufio_writer_t *writer, const bufio_writer_options_t *options) {
  forget(writer);
  bool has_policy = options->sync_records != 0 || options->sync_bytes != 0 ||
                    options->sync_interval_ms != 0;
  if (options->durability < BUFIO_DURABILITY_NONE ||
      options->durability > BUFIO_DURABILITY_POWER ||
      (has_policy && options->durability != BUFIO_DURABILITY_POWER)) {
    return -EINVAL;
  }
  writer->durability = options->durability;
  writer->line_buffered = options->line_buffered;
  writer->return_would_block = options->return_would_block;
  writer->sync_records = options->sync_records;
  writer->sync_bytes = options->sync_bytes;
  writer->sync_interval_ms = options->sync_interval_ms;
  return init_memory(writer, options);
}

// ---- the last steps, which `open` and `attach` share ----

static int start_journal(bufio_writer_t *writer, const char *journal_path) {
  struct stat stat;
  int status = bufio_system->stat(writer->descriptor, &stat);
  if (status < 0) {
    return status;
  }
  if (!S_ISREG(stat.st_mode)) {
    return -EINVAL;
  }
  size_t ring = writer->capacity_bytes + BUFIO_WRITER_SLACK_BYTES;
  writer->written = (uint64_t)stat.st_size;
  status = bufio_journal_create(journal_path, writer->descriptor,
                                writer->written, ring, &writer->journal);
  if (status < 0) {
    return status;
  }
  size_t place = (size_t)(writer->written % ring);
  writer->buffer = writer->journal->ring;
  writer->room_end = writer->buffer + place + ring;
  writer->cursor = writer->buffer + place;
  writer->commit_word = &writer->journal->header->committed;
  return 0;
}

static int find_position(bufio_writer_t *writer, bool at_end) {
  int64_t position =
      bufio_system->seek(writer->descriptor, 0, at_end ? SEEK_END : SEEK_CUR);
  if (position == -EBADF) {
    return -EBADF;
  }
  // What cannot seek counts from 0.
  writer->written = position < 0 ? 0 : (uint64_t)position;
  writer->cursor = writer->buffer;
  return 0;
}

// Where a write would wait with signals blocked (named pipes; pipes that are
// opened by a name such as /dev/stdout; terminals), O_NONBLOCK keeps it from
// that. It belongs to the open file, so ours must be ours alone. What cannot be
// had is not missed: then a write waits if another writer is faster.

// Whether opening what is attached anew gives the same thing, and it needs
// that.
static bool can_open_anew(int descriptor, const struct stat *stat) {
  if (S_ISFIFO(stat->st_mode)) {
    // The pipes of pipe(2) can be written without waiting as they are, and may
    // have modes of the open file.
    int64_t system;
    return bufio_system->file_system(descriptor, &system) == 0 &&
           system != PIPEFS_MAGIC;
  }
  // Terminals of windows and of ssh. /dev/ptmx would be another one each time,
  // and so may be /dev/tty.
  unsigned int number = major(stat->st_rdev);
  return S_ISCHR(stat->st_mode) && number >= UNIX98_PTY_SLAVE_MAJOR &&
         number < UNIX98_PTY_SLAVE_MAJOR + UNIX98_PTY_MAJOR_COUNT;
}

static void open_anew(bufio_writer_t *writer) {
  char name[64];
  (void)snprintf(name, sizeof(name), "/proc/self/fd/%d", writer->descriptor);
  int descriptor = bufio_io_open(name, O_WRONLY | O_NONBLOCK | O_NOCTTY, 0);
  if (descriptor >= 0) {
    writer->descriptor = descriptor;
    writer->owns_descriptor = true;
  }
}

// -EBADF: there will never be room in what is not open for writing.
static int keep_from_blocking(bufio_writer_t *writer) {
  struct stat stat;
  int flags = bufio_system->flags(writer->descriptor);
  if (flags < 0 || bufio_system->stat(writer->descriptor, &stat) < 0 ||
      S_ISREG(stat.st_mode)) {
    return 0;
  }
  if ((flags & O_ACCMODE) == O_RDONLY) {
    return -EBADF;
  }
  if (writer->owns_descriptor) {
    (void)bufio_system->set_flags(writer->descriptor, flags | O_NONBLOCK);
  } else if ((flags & (O_PATH | O_DIRECT)) == 0 &&
             can_open_anew(writer->descriptor, &stat)) {
    open_anew(writer);  // Unless that would lose what the open file has.
  }
  return 0;
}

void bufio_writer_open_anew(bufio_writer_t *writer) {
  bufio_exit_hold_t hold;
  bufio_exit_lock(writer->exit_slot, &hold);
  writer->opens_anew = false;
  (void)keep_from_blocking(writer);
  // The child may have redirected the descriptor, to a file, say.
  bufio_exit_look(writer->exit_slot, writer->descriptor);
  bufio_exit_unlock(writer->exit_slot, &hold);
}

static int start(bufio_writer_t *writer, const char *journal_path,
                 bool at_end) {
  bool is_process = writer->durability == BUFIO_DURABILITY_PROCESS;
  int status = is_process ? start_journal(writer, journal_path)
                          : find_position(writer, at_end);
  if (status < 0) {
    return status;
  }
  writer->commit_bias = writer->written - (uint64_t)(uintptr_t)writer->cursor;
  writer->synced = writer->written;
  bufio_writer_publish(writer, writer->cursor);
  bufio_writer_set_limit(writer);
  if (writer->durability == BUFIO_DURABILITY_EXIT) {
    status = keep_from_blocking(writer);
  }
  if (status < 0) {
    goto fail_fork;
  }
  status = bufio_fork_guard_add(&writer->fork_node, writer_in_child);
  if (status < 0) {
    goto fail_fork;
  }
  if (is_process || writer->durability == BUFIO_DURABILITY_EXIT) {
    writer->exit_slot = bufio_exit_add(writer, !is_process);
    if (writer->exit_slot == NULL) {
      status = -ENOMEM;
      goto fail_exit;
    }
  }
  return 0;

fail_exit:
  bufio_fork_guard_remove(&writer->fork_node);
fail_fork:
  bufio_journal_destroy(writer->journal, false);
  return status;
}

// ---- open ----

// `path` with the suffix, or the option. The caller frees.
static char *journal_path_of(const char *path,
                             const bufio_writer_options_t *options) {
  if (options->journal_path != NULL) {
    return strdup(options->journal_path);
  }
  size_t len = strlen(path);
  char *journal_path = malloc(len + sizeof(BUFIO_JOURNAL_SUFFIX));
  if (journal_path != NULL) {
    memcpy(journal_path, path, len);
    memcpy(journal_path + len, BUFIO_JOURNAL_SUFFIX,
           sizeof(BUFIO_JOURNAL_SUFFIX));
  }
  return journal_path;
}

// A new name is on the disk when its folder is.
static int sync_folder_of(const char *path) {
  char *folder = bufio_io_folder_of(path);
  int status = folder != NULL ? bufio_io_sync_folder(folder) : -ENOMEM;
  free(folder);
  return status;
}

static int open_writer(bufio_writer_t *writer, const char *path,
                       const bufio_writer_options_t *options) {
  int status = init(writer, options);
  if (status < 0) {
    goto fail_init;
  }
  char *journal_path = journal_path_of(path, options);
  if (journal_path == NULL) {
    status = -ENOMEM;
    goto fail_path;
  }
  status = bufio_writer_open_file(path, journal_path, options);
  if (status < 0) {
    goto fail_open;
  }
  // Level `process`: the file is locked.
  int cancel_state = bufio_hold_begin();
  writer->descriptor = status;
  writer->owns_descriptor = true;
  status =
      options->durability == BUFIO_DURABILITY_POWER ? sync_folder_of(path) : 0;
  if (status == 0) {
    status = start(writer, journal_path, options->append);
  }
  if (status < 0) {
    (void)bufio_journal_close_locked(writer->descriptor);
  }
  bufio_hold_end(cancel_state);
  if (status < 0) {
    goto fail_open;
  }
  free(journal_path);
  return 0;

fail_open:
  free(journal_path);
fail_path:
  deinit_memory(writer);
fail_init:
  forget(writer);
  return status;
}

int bufio_writer_open(bufio_writer_t *writer, const char *path,
                      const bufio_writer_options_t *options) {
  options = options != NULL ? options : &default_options;
  if (options->durability != BUFIO_DURABILITY_PROCESS) {
    // It may wait: a named pipe's open does, for a reader.
    return open_writer(writer, path, options);
  }
  // Cancelled between the lock of the file and the end, nobody would unlock it.
  int cancel_state = bufio_hold_begin();
  int status = open_writer(writer, path, options);
  bufio_hold_end(cancel_state);
  return status;
}

static int attach_process(bufio_writer_t *writer, const char *journal_path) {
  if (journal_path == NULL) {
    return -EINVAL;
  }
  int locked = bufio_writer_settle_attached(writer->descriptor, journal_path);
  if (locked < 0) {
    return locked;
  }
  int status = start(writer, journal_path, false);
  if (status < 0) {
    (void)bufio_journal_close_locked(locked);
    return status;
  }
  writer->journal->target_lock = locked;
  return 0;
}

int bufio_writer_attach(bufio_writer_t *writer, int descriptor,
                        const bufio_writer_options_t *options) {
  options = options != NULL ? options : &default_options;
  int status = descriptor < 0 ? -EBADF : init(writer, options);
  if (status < 0) {
    forget(writer);
    return status;
  }
  int cancel_state = bufio_hold_begin();
  writer->descriptor = descriptor;
  writer->callers_descriptor = descriptor;
  status = options->durability == BUFIO_DURABILITY_PROCESS
               ? attach_process(writer, options->journal_path)
               : start(writer, NULL, false);
  if (status < 0) {
    if (writer->owns_descriptor) {
      (void)bufio_system->close(writer->descriptor);
    }
    deinit_memory(writer);
    forget(writer);
  }
  bufio_hold_end(cancel_state);
  return status;
}

// ---- close ----

static int hand_over(bufio_writer_t *writer) {
  if (writer->is_foreign) {
    return -ECHILD;
  }
  return writer->durability == BUFIO_DURABILITY_POWER && !writer->is_child
             ? bufio_writer_sync(writer)
             : bufio_writer_flush(writer);
}

static void finish_journal(bufio_writer_t *writer) {
  bool is_cut = bufio_journal_direct_end(writer->journal) == 0;
  if (!is_cut &&
      bufio_system->truncate(writer->descriptor, writer->written) == 0) {
    is_cut = true;
  }
  if (!writer->owns_descriptor) {
    // pwrite does not move it; the caller goes on where we stopped.
    (void)bufio_system->seek(writer->descriptor, (int64_t)writer->written,
                             SEEK_SET);
  }
  bufio_journal_destroy(
      writer->journal, !is_cut || writer->written != bufio_writer_tell(writer));
}

// The descriptor that is ours. EINTR is no failure: it is gone on Linux, and
// the bytes were handed over before.
static int close_own(const bufio_writer_t *writer) {
  int status = writer->journal != NULL
                   ? bufio_journal_close_locked(writer->descriptor)
                   : bufio_system->close(writer->descriptor);
  return status == -EINTR ? 0 : status;
}

// Gives back everything but the bytes. Returns the error of close(2).
static int deinit(bufio_writer_t *writer) {
  // Handlers look through the slot, and children of a fork through the list, at
  // what goes now.
  bufio_exit_remove(writer->exit_slot);
  bufio_fork_guard_remove(&writer->fork_node);
  if (writer->is_foreign) {
    free(writer->journal->path);
    free(writer->journal);
  } else if (writer->journal != NULL) {
    finish_journal(writer);
  }
  int status = writer->owns_descriptor ? close_own(writer) : 0;
  deinit_memory(writer);
  forget(writer);
  return status;
}

int bufio_writer_close(bufio_writer_t *writer) {
  if (writer == NULL || (writer->buffer == NULL && !writer->is_foreign)) {
    return 0;
  }
  int status = hand_over(writer);
  // Cancelled in the middle of what follows, nobody could close it once more.
  int cancel_state = bufio_hold_begin();
  int closed = deinit(writer);
  bufio_hold_end(cancel_state);
  return status < 0 ? status : closed;
}
