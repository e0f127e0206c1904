// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The log's file: created with its header, watched, closed. All memory is
// mapped, none is malloc's:
//
//   +--------------+------------------+      +---------------------+--------+
//   | ours (wiped) | heaplog_writer_t | ---> | 256 streams (wiped) | chunks |
//   +--------------+------------------+      +---------------------+--------+
//     one page                                 blocks of lanes, on demand
//
// "Wiped" is MADV_WIPEONFORK: a forked child finds zeros there, and so sees
// that the log is not its own before any fork handler has run.
//
// The program shares its descriptors with us and may close ours, or have it
// closed by a loop over all numbers, and open a file of its own under the same
// number. So before each chunk the descriptor is compared with the file's
// device and inode, and the file opened again if it is not ours any more.

#include "leakcheck/heaplog_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "leakcheck/crc32c.h"
#include "leakcheck/heaplog_writer_internal.h"

// Linux 4.14; older headers lack it.
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

// Programs expect their own files at low numbers and close those in loops.
#define DESCRIPTOR_LOWEST 1000
#define CREATE_ATTEMPTS 16
#define LOG_MODE 0600

static heaplog_file_header_t make_header(
    const heaplog_writer_options_t *options) {
  heaplog_file_header_t header = {
      .magic = HEAPLOG_MAGIC,
      .version_major = HEAPLOG_VERSION_MAJOR,
      .version_minor = HEAPLOG_VERSION_MINOR,
      .header_bytes = (uint32_t)options->page_bytes,
      .chunk_bytes = HEAPLOG_CHUNK_BYTES,
      .page_bytes = (uint32_t)options->page_bytes,
      .pid = options->pid,
      .start_monotonic_ns = options->start_monotonic_ns,
      .start_unix_ns = options->start_unix_ns,
      .chunk_count = heaplog_counter_word(0),
      .lost_count = heaplog_counter_word(0),
  };
  header.crc = heaplog_crc32c_value(
      heaplog_crc32c_extend_portable(HEAPLOG_CRC32C_INITIAL_STATE, &header,
                                     offsetof(heaplog_file_header_t, crc)));
  return header;
}

// Returns 0 when the file at `path` may be replaced: it is a regular file, and
// empty or a heaplog.
static int check_replaceable(const heaplog_system_t *system, const char *path) {
  int descriptor = system->open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (descriptor < 0) {
    return descriptor == -ELOOP ? -EINVAL : descriptor;
  }
  struct stat stat;
  uint64_t magic = 0;
  int status = system->stat(descriptor, &stat);
  if (status == 0 && !S_ISREG(stat.st_mode)) {
    status = -EINVAL;
  }
  if (status == 0 && stat.st_size > 0 &&
      (system->read(descriptor, &magic, sizeof(magic), 0) != sizeof(magic) ||
       magic != HEAPLOG_MAGIC)) {
    status = -EEXIST;
  }
  system->close(descriptor);
  return status;
}

// Creates the file, unlinking an older log of that name. Returns a descriptor.
static int create_file(const heaplog_system_t *system, const char *path) {
  int descriptor = -EEXIST;
  for (int i = 0; descriptor == -EEXIST && i < CREATE_ATTEMPTS; i++) {
    descriptor = system->open(path, O_RDWR | O_CREAT | O_EXCL, LOG_MODE);
    if (descriptor != -EEXIST) {
      break;
    }
    int status = check_replaceable(system, path);
    if (status == 0) {
      status = system->unlink(path);
    }
    // Another process may have taken it away, or put its own log there.
    if (status != 0 && status != -ENOENT) {
      return status;
    }
  }
  return descriptor;
}

// Moves a descriptor out of the range that programs use, if possible.
static int move_high(const heaplog_system_t *system, int descriptor) {
  int high = system->duplicate(descriptor, DESCRIPTOR_LOWEST);
  if (high < 0) {
    return descriptor;
  }
  system->close(descriptor);
  return high;
}

static int make_absolute(const heaplog_system_t *system, const char *path,
                         char out_path[PATH_MAX]) {
  size_t length = strnlen(path, PATH_MAX);
  size_t prefix = 0;
  if (length == 0) {
    return -EINVAL;
  }
  if (path[0] != '/') {
    int status = system->directory(out_path, PATH_MAX);
    if (status != 0) {
      return status;
    }
    prefix = strlen(out_path);
    out_path[prefix++] = '/';
  }
  if (prefix + length >= PATH_MAX) {
    return -ENAMETOOLONG;
  }
  memcpy(out_path + prefix, path, length + 1);
  return 0;
}

// Opens the log's file, writes its header and maps it.
static int open_file(heaplog_writer_t *writer,
                     const heaplog_writer_options_t *options) {
  const heaplog_system_t *system = writer->system;
  int descriptor = create_file(system, writer->path);
  if (descriptor < 0) {
    return descriptor;
  }
  descriptor = move_high(system, descriptor);
  struct stat stat;
  int status = system->stat(descriptor, &stat);
  unsigned char *page = NULL;
  if (status == 0) {
    status = heaplog_chunk_map(system, descriptor, 0, writer->header_bytes,
                               /*populate=*/false, &page);
  }
  if (status != 0) {
    system->unlink(writer->path);
    system->close(descriptor);
    return status;
  }
  heaplog_file_header_t header = make_header(options);
  writer->header = (heaplog_file_header_t *)page;
  memcpy(page + sizeof(header.magic), &header.magic + 1,
         sizeof(header) - sizeof(header.magic));
  // The magic last, so that a file with a magic has all of its header.
  atomic_store_explicit((_Atomic uint64_t *)&writer->header->magic,
                        header.magic, memory_order_release);
  writer->device = stat.st_dev;
  writer->inode = stat.st_ino;
  atomic_init(&writer->descriptor, descriptor);
  return 0;
}

static bool options_are_valid(const heaplog_writer_options_t *options) {
  uint64_t page_bytes = options->page_bytes;
  return options->path != NULL && page_bytes >= HEAPLOG_HEADER_BYTES_MIN &&
         page_bytes <= HEAPLOG_HEADER_BYTES_MAX &&
         (page_bytes & (page_bytes - 1)) == 0;
}

int heaplog_writer_open_on(const heaplog_system_t *system,
                           const heaplog_writer_options_t *options,
                           heaplog_writer_t **out_writer) {
  if (!options_are_valid(options)) {
    return -EINVAL;
  }
  size_t page_bytes = options->page_bytes;
  size_t mapped_bytes = page_bytes + sizeof(heaplog_writer_t);
  unsigned char *memory = system->map_memory(mapped_bytes);
  if (memory == NULL) {
    return -ENOMEM;
  }
  // An older kernel refuses; heaplog_writer_forget() then does it alone.
  (void)system->advise(memory, page_bytes, MADV_WIPEONFORK);
  heaplog_writer_t *writer = (heaplog_writer_t *)(memory + page_bytes);
  writer->system = system;
  writer->ours = (_Atomic uint32_t *)memory;
  writer->mapped_bytes = mapped_bytes;
  writer->header_bytes = (uint32_t)page_bytes;
  writer->hardware_crc = heaplog_crc32c_has_hardware();
  writer->start_monotonic_ns = options->start_monotonic_ns;
  atomic_init(&writer->floor_ns, options->start_monotonic_ns);
  int status = make_absolute(system, options->path, writer->path);
  if (status == 0) {
    status = open_file(writer, options);
  }
  if (status != 0) {
    system->unmap(memory, mapped_bytes);
    return status;
  }
  atomic_init(writer->ours, 1);
  *out_writer = writer;
  return 0;
}

int heaplog_writer_open(const heaplog_writer_options_t *options,
                        heaplog_writer_t **out_writer) {
  return heaplog_writer_open_on(&heaplog_system_kernel, options, out_writer);
}

// Returns 1 when a descriptor is open on the log's file, 0 when it is closed or
// open on another, or -errno when that cannot be told.
static int is_log(const heaplog_writer_t *writer, int descriptor) {
  struct stat stat;
  int status = writer->system->stat(descriptor, &stat);
  if (status != 0) {
    return status == -EBADF ? 0 : status;
  }
  return stat.st_dev == writer->device && stat.st_ino == writer->inode;
}

int heaplog_writer_descriptor(heaplog_writer_t *writer) {
  const heaplog_system_t *system = writer->system;
  // Relaxed: a number, and checked.
  int descriptor =
      atomic_load_explicit(&writer->descriptor, memory_order_relaxed);
  int status = is_log(writer, descriptor);
  if (status != 0) {
    return status > 0 ? descriptor : status;
  }
  int fresh = system->open(writer->path, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
  if (fresh < 0) {
    return fresh;
  }
  status = is_log(writer, fresh);
  if (status <= 0) {
    system->close(fresh);
    return status == 0 ? -EBADF : status;
  }
  fresh = move_high(system, fresh);
  // The old number is not closed: it is not ours any more.
  if (!atomic_compare_exchange_strong_explicit(&writer->descriptor, &descriptor,
                                               fresh, memory_order_relaxed,
                                               memory_order_relaxed)) {
    system->close(fresh);
    return descriptor;
  }
  return fresh;
}

void heaplog_writer_add_lost(heaplog_writer_t *writer, uint64_t count) {
  _Atomic uint64_t *lost_word = (_Atomic uint64_t *)&writer->header->lost_count;
  // Relaxed: a statistic.
  uint64_t word = atomic_load_explicit(lost_word, memory_order_relaxed);
  uint64_t next;
  do {
    uint32_t lost = (uint32_t)word;
    next = heaplog_counter_word(
        count > UINT32_MAX - lost ? UINT32_MAX : lost + (uint32_t)count);
  } while (!atomic_compare_exchange_weak_explicit(
      lost_word, &word, next, memory_order_relaxed, memory_order_relaxed));
}

int heaplog_writer_error(const heaplog_writer_t *writer) {
  return atomic_load_explicit(&writer->error, memory_order_relaxed);
}

uint64_t heaplog_writer_lost_count(const heaplog_writer_t *writer) {
  if (!heaplog_writer_is_ours(writer)) {
    return 0;
  }
  return (uint32_t)atomic_load_explicit(
      (_Atomic uint64_t *)&writer->header->lost_count, memory_order_relaxed);
}

static void close_file(heaplog_writer_t *writer) {
  if (writer->header == NULL) {
    return;
  }
  writer->system->unmap(writer->header, writer->header_bytes);
  writer->header = NULL;
  int descriptor =
      atomic_load_explicit(&writer->descriptor, memory_order_relaxed);
  if (is_log(writer, descriptor) > 0) {
    writer->system->close(descriptor);
  }
}

void heaplog_writer_close(heaplog_writer_t *writer) {
  if (writer == NULL) {
    return;
  }
  const heaplog_system_t *system = writer->system;
  heaplog_lanes_unmap(writer);
  close_file(writer);
  system->unmap(writer->ours, writer->mapped_bytes);
}

void heaplog_writer_forget(heaplog_writer_t *writer) {
  if (writer == NULL) {
    return;
  }
  atomic_store_explicit(writer->ours, 0, memory_order_relaxed);
  heaplog_lanes_forget(writer);
  close_file(writer);
}
