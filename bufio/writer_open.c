// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Beginning and end of a writer.
//
// Order of opening: memory, side files, the file, the side file of our own, the
// list for fork, the slot for exit. Whatever fails, what was done before it is
// undone in reverse.
//
// Level `process` holds the lock of the file itself, from before anything is
// measured or emptied until close; other levels take it, shared, while they
// empty the file. So a living writer of level `process` is never cut off its
// file, and no size is stale when the side file begins with it. O_TRUNC would
// come before the lock, so ftruncate does it.
//
// What a side file says is put into a file that was there before, never into
// one that this open has made: that one's inode may be its predecessor's.
//
// In the child of a fork a writer is emptied, not flushed: the bytes are the
// parent's, who will write them. What is shared with the parent (the side file,
// its lock) is let go.

#include "bufio/writer.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bufio/exit_flush.h"
#include "bufio/fork_guard.h"
#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"
#include "bufio/writer_internal.h"

static const bufio_writer_options_t default_options;

static void forget(bufio_writer_t *writer) {
  memset(writer, 0, sizeof(*writer));
  writer->descriptor = -1;
  writer->commit_word = &writer->committed;
}

// ---- fork ----

static void writer_in_child(bufio_fork_node_t *node) {
  bufio_writer_t *writer =
      (bufio_writer_t *)((unsigned char *)node -
                         offsetof(bufio_writer_t, fork_node));
  bufio_exit_reset(writer->exit_slot);
  if (writer->journal != NULL) {
    bufio_journal_abandon(writer->journal);
    if (writer->owns_descriptor) {
      // The lock is the open file's: our copy would outlive the parent.
      (void)bufio_system->close(writer->descriptor);
      writer->descriptor = -1;
      writer->owns_descriptor = false;
    }
    writer->is_foreign = true;
    writer->committed = bufio_writer_tell(writer);
    writer->commit_word = &writer->committed;
    writer->commit_bias = writer->committed;
    writer->cursor = NULL;
    writer->limit = NULL;
    writer->room_end = NULL;
    return;
  }
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

// Opens the file as it is, or makes it. A file that is gone while its side file
// is there is not made anew: -EPROTO.
static int open_or_create(const char *path, const char *journal_path, int flags,
                          const bufio_writer_options_t *options,
                          bool *out_is_new) {
  unsigned int mode = options->mode != 0 ? options->mode : 0666;
  bool is_missed = false;
  // Somebody else may make it between two calls, and remove it again.
  for (int attempt = 0; attempt < 8; attempt++) {
    int descriptor =
        bufio_io_open(path, options->exclusive ? O_PATH : flags, 0);
    if (descriptor >= 0 && options->exclusive) {
      (void)bufio_system->close(descriptor);
      return -EEXIST;
    }
    if (descriptor != -ENOENT) {
      *out_is_new = false;
      return descriptor;
    }
    int exists = bufio_journal_exists(journal_path);
    if (exists < 0 || (exists > 0 && is_missed)) {
      return exists < 0 ? exists : -EPROTO;
    }
    if (exists > 0) {
      // Unless somebody makes the two right now: then the file is there.
      is_missed = true;
      continue;
    }
    descriptor = bufio_io_open(path, flags | O_CREAT | O_EXCL, mode);
    if (descriptor != -EEXIST || options->exclusive) {
      *out_is_new = true;
      return descriptor;
    }
  }
  // A symbolic link to nothing.
  *out_is_new = true;
  return bufio_io_open(path, flags | O_CREAT, mode);
}

// Under the lock: puts in place or removes what a killed writer left.
static int settle(int descriptor, const char *journal_path,
                  const bufio_writer_options_t *options, bool is_new) {
  if (is_new) {
    int exists = bufio_journal_exists(journal_path);
    return exists > 0 ? -EPROTO : exists;
  }
  return options->append
             ? bufio_journal_replay_open(descriptor, journal_path, NULL)
             : bufio_journal_empty(descriptor, journal_path);
}

static int lock_and_settle(int descriptor, const char *path,
                           const char *journal_path,
                           const bufio_writer_options_t *options, bool is_new) {
  bool is_process = options->durability == BUFIO_DURABILITY_PROCESS;
  struct stat stat;
  int status = bufio_system->stat(descriptor, &stat);
  if (status < 0) {
    return status;
  }
  if (!S_ISREG(stat.st_mode)) {
    return is_process ? -EINVAL : 0;
  }
  status = bufio_journal_lock(descriptor, path, is_process ? LOCK_EX : LOCK_SH);
  // Not every file system has locks; level `process` cannot do without.
  if (status == -EBUSY || (status < 0 && is_process)) {
    return status;
  }
  status = settle(descriptor, journal_path, options, is_new);
  if (!is_process) {
    (void)bufio_system->lock(descriptor, LOCK_UN);
  }
  return status;
}

// Before the file is opened for appending at a level that needs no lock.
static int replay_if_killed(const char *path, const char *journal_path) {
  int status = bufio_journal_exists(journal_path);
  if (status > 0) {
    status = bufio_journal_replay(path, journal_path, NULL);
  }
  return status == -ENOENT ? 0 : status;
}

// Opens the file; what a killed writer left is in it, or gone if the file was
// to be emptied. Returns the descriptor.
static int open_file(const char *path, const char *journal_path,
                     const bufio_writer_options_t *options) {
  bool is_process = options->durability == BUFIO_DURABILITY_PROCESS;
  bool is_plain_append = options->append && !is_process;
  int status = is_plain_append && !options->exclusive
                   ? replay_if_killed(path, journal_path)
                   : 0;
  if (status < 0) {
    return status;
  }
  int flags = (is_process ? O_RDWR : O_WRONLY);
  flags |= is_plain_append ? O_APPEND : 0;
  bool is_new = false;
  int descriptor = open_or_create(path, journal_path, flags, options, &is_new);
  if (descriptor < 0 || is_plain_append || (is_new && !is_process)) {
    return descriptor;
  }
  status = lock_and_settle(descriptor, path, journal_path, options, is_new);
  if (status < 0) {
    (void)bufio_system->close(descriptor);
    return status;
  }
  return descriptor;
}

int bufio_writer_open(bufio_writer_t *writer, const char *path,
                      const bufio_writer_options_t *options) {
  options = options != NULL ? options : &default_options;
  int status = init(writer, options);
  if (status < 0) {
    goto fail_init;
  }
  char *journal_path = journal_path_of(path, options);
  if (journal_path == NULL) {
    status = -ENOMEM;
    goto fail_path;
  }
  status = open_file(path, journal_path, options);
  if (status < 0) {
    goto fail_open;
  }
  writer->descriptor = status;
  writer->owns_descriptor = true;
  status =
      options->durability == BUFIO_DURABILITY_POWER ? sync_folder_of(path) : 0;
  if (status == 0) {
    status = start(writer, journal_path, options->append);
  }
  if (status < 0) {
    goto fail_start;
  }
  free(journal_path);
  return 0;

fail_start:
  (void)bufio_system->close(writer->descriptor);
fail_open:
  free(journal_path);
fail_path:
  deinit_memory(writer);
fail_init:
  forget(writer);
  return status;
}

// That level `process` can do with a descriptor: it stands at the end, and
// writes where it is told.
static int check_attachable(int descriptor) {
  int flags = bufio_system->flags(descriptor);
  if (flags < 0) {
    return flags;
  }
  struct stat stat;
  int status = bufio_system->stat(descriptor, &stat);
  if (status < 0) {
    return status;
  }
  if ((flags & O_APPEND) != 0 || (flags & O_ACCMODE) != O_RDWR ||
      !S_ISREG(stat.st_mode)) {
    return -EINVAL;
  }
  int64_t position = bufio_system->seek(descriptor, 0, SEEK_CUR);
  if (position < 0) {
    return (int)position;
  }
  return position == stat.st_size ? 0 : -EINVAL;
}

// Locks the caller's file. The lock belongs to an open file, and a descriptor
// of the caller's may be inherited by a child that outlives us; so the file is
// opened again. Returns the descriptor that has the lock.
static int lock_attached(int descriptor) {
  char name[64];
  (void)snprintf(name, sizeof(name), "/proc/self/fd/%d", descriptor);
  int locked = bufio_io_open(name, O_RDWR, 0);
  if (locked < 0) {
    return locked;
  }
  int status = bufio_journal_lock(locked, NULL, LOCK_EX);
  if (status < 0) {
    (void)bufio_system->close(locked);
    return status;
  }
  return locked;
}

static int attach_process(bufio_writer_t *writer, const char *journal_path) {
  if (journal_path == NULL) {
    return -EINVAL;
  }
  int locked = lock_attached(writer->descriptor);
  if (locked < 0) {
    return locked;
  }
  int status = check_attachable(writer->descriptor);
  if (status == 0) {
    status = bufio_journal_replay_open(writer->descriptor, journal_path, NULL);
  }
  if (status == 0) {
    status = start(writer, journal_path, false);
  }
  if (status < 0) {
    (void)bufio_system->close(locked);
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
  writer->descriptor = descriptor;
  status = options->durability == BUFIO_DURABILITY_PROCESS
               ? attach_process(writer, options->journal_path)
               : start(writer, NULL, false);
  if (status < 0) {
    deinit_memory(writer);
    forget(writer);
  }
  return status;
}

// ---- close ----

// What close says: the first thing that went wrong.
static int finish(bufio_writer_t *writer) {
  if (writer->is_foreign) {
    return -ECHILD;
  }
  int status = writer->durability == BUFIO_DURABILITY_POWER
                   ? bufio_writer_sync(writer)
                   : bufio_writer_flush(writer);
  if (writer->journal != NULL) {
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
        writer->journal,
        !is_cut || writer->written != bufio_writer_tell(writer));
  }
  return status;
}

int bufio_writer_close(bufio_writer_t *writer) {
  if (writer == NULL || (writer->buffer == NULL && !writer->is_foreign)) {
    return 0;
  }
  int status = finish(writer);
  bufio_exit_remove(writer->exit_slot);
  bufio_fork_guard_remove(&writer->fork_node);
  if (writer->is_foreign) {
    free(writer->journal->path);
    free(writer->journal);
  }
  if (writer->owns_descriptor) {
    // EINTR too: the descriptor is gone on Linux, and the bytes were handed
    // over before.
    int closed = bufio_system->close(writer->descriptor);
    if (status == 0 && closed < 0 && closed != -EINTR) {
      status = closed;
    }
  }
  deinit_memory(writer);
  forget(writer);
  return status;
}
