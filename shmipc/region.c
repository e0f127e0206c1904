// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A region in this process: its mapping, and what all kinds have in common.
//
//   base                             mapped_bytes             reserved_bytes
//   | header slots records | data ...  | inaccessible, for growth |
//
// The address range of the whole capacity is reserved at open, so data never
// moves. Growth makes the file longer, under the gate; the file's length, asked
// of the kernel, is the only truth about it. Each process maps what was added
// when it is asked for an offset there. Killed during growth: fallocate(2) of a
// file in memory either happened or did not.
//
// Locks: `lock` of the region, inside of it the presence locks; it makes the
// gate exclude threads, too.

#include "shmipc/region.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shmipc/block_layout.h"
#include "shmipc/region_internal.h"

shmipc_region_t *shmipc_region_new(const shmipc_region_options_t *options) {
  if (shmipc_attachment_prepare() < 0) {
    return NULL;
  }
  shmipc_region_t *region = calloc(1, sizeof(*region));
  if (region == NULL) {
    return NULL;
  }
  pthread_mutex_init(&region->lock, NULL);
  region->backend = options->backend;
  region->read_only = options->read_only;
  region->huge_pages = options->huge_pages;
  region->slot = UINT32_MAX;
  region->fd = -1;
  region->shm_id = -1;
  region->semaphore_id = -1;
  shmipc_attachment_add(region);
  return region;
}

void shmipc_region_discard(shmipc_region_t *region) {
  if (region == NULL) {
    return;
  }
  int saved = errno;
  // First, so that no thread that ends works in it any more.
  shmipc_attachment_remove(region);
  if (region->base != NULL) {
    shmipc_slot_give_up(region);
  }
  if (region->backend == SHMIPC_SYSV) {
    shmipc_sysv_detach(region);
  } else if (region->base != NULL) {
    munmap(region->base, region->reserved_bytes);
  }
  if (region->fd >= 0) {
    close(region->fd);
  }
  pthread_mutex_destroy(&region->lock);
  free(region);
  errno = saved;
}

void shmipc_region_close(shmipc_region_t *region) {
  shmipc_region_discard(region);
}

static int protection_of(const shmipc_region_t *region) {
  return region->read_only ? PROT_READ : PROT_READ | PROT_WRITE;
}

static void set_mapped(shmipc_region_t *region, size_t bytes) {
  // Release: whoever sees the length may use the pages.
  __atomic_store_n(&region->mapped_bytes, bytes, __ATOMIC_RELEASE);
  if (region->pages_offset != 0 && bytes > region->pages_offset) {
    uint64_t pages = (bytes - region->pages_offset) >> SHMIPC_PAGE_SHIFT;
    __atomic_store_n(
        &region->mapped_pages,
        pages < region->heap_pages ? (uint32_t)pages : region->heap_pages,
        __ATOMIC_RELEASE);
  }
}

// Maps the bytes from `from` to `to` of the file, by an open file of its own: a
// mapping keeps its open file, locks and all, and a child of fork has a copy of
// the mapping.
static int map_more(shmipc_region_t *region, size_t from, size_t to) {
  int fd = shmipc_region_share_fd(region);
  if (fd < 0) {
    return fd;
  }
  void *memory = mmap(region->base + from, to - from, protection_of(region),
                      MAP_SHARED | MAP_FIXED, fd, (off_t)from);
  int status = memory != MAP_FAILED ? 0 : -errno;
  close(fd);
  if (status < 0) {
    return status;
  }
  if (region->huge_pages && region->backend == SHMIPC_POSIX) {
    (void)madvise(memory, to - from, MADV_HUGEPAGE);
  }
  set_mapped(region, to);
  return 0;
}

// Address space that begins at a multiple of the pages' size.
static unsigned char *reserve(size_t size_bytes, size_t page_bytes) {
  size_t all = size_bytes + page_bytes;
  unsigned char *memory = mmap(
      NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return NULL;
  }
  size_t before = (page_bytes - (uintptr_t)memory % page_bytes) % page_bytes;
  if (before != 0) {
    munmap(memory, before);
  }
  munmap(memory + before + size_bytes, all - before - size_bytes);
  return memory + before;
}

// The handle is in the list of attachments already. Release: who finds it there
// by its base (attachment.c) sees `reserved_bytes`.
static void set_base(shmipc_region_t *region, unsigned char *memory) {
  if (region->heap_offset != 0) {
    region->heads =
        (uint64_t *)(void *)(memory + region->heap_offset +
                             SHMIPC_HEAP_HEAD_BYTES +
                             SHMIPC_ROOTS_MAX * sizeof(shmipc_root_t));
    region->pages = memory + region->pages_offset;
  }
  __atomic_store_n(&region->base, memory, __ATOMIC_RELEASE);
}

int shmipc_region_map(shmipc_region_t *region, uint64_t actual_bytes) {
  assert(region->base == NULL && actual_bytes <= region->capacity_bytes);
  if (region->heap_offset != 0) {
    region->pages_offset =
        region->heap_offset + shmipc_heap_tables_bytes(region->heap_pages);
  }
  if (region->backend == SHMIPC_SYSV) {
    int flags = region->read_only ? SHM_RDONLY : 0;
    void *memory = shmat(region->shm_id, NULL, flags);
    if (memory == (void *)-1) {
      return -errno;
    }
    region->reserved_bytes = (size_t)actual_bytes;
    set_base(region, memory);
    set_mapped(region, (size_t)actual_bytes);
    return 0;
  }
  region->reserved_bytes = (size_t)region->capacity_bytes;
  unsigned char *memory = reserve(region->reserved_bytes, region->page_bytes);
  if (memory == NULL) {
    return -ENOMEM;
  }
  set_base(region, memory);
  return map_more(region, 0, (size_t)actual_bytes);
}

int shmipc_region_refresh(shmipc_region_t *region) {
  struct stat status;
  if (region->backend == SHMIPC_SYSV) {
    return 0;
  }
  if (fstat(region->fd, &status) < 0) {
    return -errno;
  }
  uint64_t now = (uint64_t)status.st_size;
  now = now < region->capacity_bytes ? now : region->capacity_bytes;
  now -= now % region->page_bytes;
  if (now <= region->mapped_bytes) {
    return 0;
  }
  return map_more(region, region->mapped_bytes, (size_t)now);
}

int shmipc_region_build(shmipc_region_t *region, const char *name,
                        const shmipc_region_options_t *options,
                        const shmipc_plan_t *plan) {
  shmipc_header_t *header = shmipc_header_of(region);
  shmipc_header_fill(header, name, options, plan);
  region->header_hash = header->hash;
  if (region->heap_offset != 0) {
    shmipc_heap_head_t *heap =
        (shmipc_heap_head_t *)(void *)(region->base + region->heap_offset);
    // Never biased: others read from the first one's word who has it
    // (block_page.c).
    heap->roots_mutex.word = SHMIPC_WORD_SHARED;
    heap->runs_mutex.word = SHMIPC_WORD_SHARED;
  }
  if (options->initialize != NULL) {
    uint64_t end =
        region->heap_offset != 0 ? region->heap_offset : region->mapped_bytes;
    int status = options->initialize(options->context,
                                     region->base + region->data_offset,
                                     (size_t)(end - region->data_offset));
    if (status < 0) {
      return status;
    }
  }
  return shmipc_slot_take(region);
}

void shmipc_region_set_ready(shmipc_region_t *region) {
  // Release: whoever sees it sees all that was done before.
  __atomic_store_n(&shmipc_header_of(region)->ready, SHMIPC_READY,
                   __ATOMIC_RELEASE);
}

void *shmipc_region_data(const shmipc_region_t *region) {
  return region->base + region->data_offset;
}

size_t shmipc_region_size(const shmipc_region_t *region) {
  return shmipc_mapped_bytes(region) - (size_t)region->data_offset;
}

void *shmipc_region_at(shmipc_region_t *region, uint64_t offset, size_t len) {
  uint64_t end;
  if (__builtin_add_overflow(offset, len, &end) ||
      end > region->capacity_bytes - region->data_offset) {
    return NULL;
  }
  if (end > shmipc_region_size(region)) {
    if (region->serial == 0) {
      return NULL;
    }
    pthread_mutex_lock(&region->lock);
    (void)shmipc_region_refresh(region);
    pthread_mutex_unlock(&region->lock);
    if (end > shmipc_region_size(region)) {
      return NULL;
    }
  }
  return region->base + region->data_offset + offset;
}

static int why_not_writable(const shmipc_region_t *region) {
  if (region->serial == 0) {
    return region->status;
  }
  return region->read_only ? -EROFS : 0;
}

int shmipc_region_grow(shmipc_region_t *region, size_t size_bytes) {
  int status = why_not_writable(region);
  if (status < 0) {
    return status;
  }
  if (region->backend == SHMIPC_SYSV) {
    return -EOPNOTSUPP;
  }
  if (size_bytes > region->capacity_bytes - region->data_offset) {
    return -EFBIG;
  }
  uint64_t total = region->data_offset + size_bytes;
  total = (total + region->page_bytes - 1) / region->page_bytes *
          region->page_bytes;
  status = shmipc_gate_lock(region, SHMIPC_GATE_WAIT_NS);
  if (status < 0) {
    return status;
  }
  status = shmipc_region_refresh(region);
  if (status == 0 && total > region->mapped_bytes) {
    status = shmipc_file_allocate(region->fd, region->mapped_bytes, total);
    if (status == 0) {
      status = shmipc_region_refresh(region);
    }
  }
  shmipc_gate_unlock(region);
  return status;
}

int shmipc_region_recover(shmipc_region_t *region) {
  int status = why_not_writable(region);
  if (status < 0) {
    return status;
  }
  status = shmipc_gate_lock(region, SHMIPC_GATE_WAIT_NS);
  if (status < 0) {
    return status;
  }
  status = shmipc_slot_recover_dead(region);
  shmipc_gate_unlock(region);
  return status;
}

int shmipc_region_info_get(shmipc_region_t *region,
                           shmipc_region_info_t *out_info) {
  if (region->serial == 0) {
    return region->status;
  }
  shmipc_region_info_t info = {
      .backend = region->backend,
      .size_bytes = shmipc_region_size(region),
      .capacity_bytes = (size_t)(region->capacity_bytes - region->data_offset),
      .max_processes = region->num_slots,
      .max_threads = region->num_records,
      .slot = region->slot,
      .layout_tag = region->layout_tag,
  };
  for (uint32_t i = 0; i < region->num_slots; i++) {
    // Relaxed: a count that may be old by the time it is returned.
    uint32_t word =
        __atomic_load_n(&shmipc_slot_of(region, i)->word, __ATOMIC_RELAXED);
    if (i == region->slot || shmipc_presence_is_locked(region, i) == 1) {
      info.num_live++;
    } else if ((word & SHMIPC_SLOT_TAKEN) != 0) {
      info.num_dead++;
    }
  }
  *out_info = info;
  return 0;
}

// Fills in what NULL stands for.
static shmipc_region_options_t options_or_default(
    const shmipc_region_options_t *options) {
  shmipc_region_options_t none = {.backend = SHMIPC_POSIX};
  return options != NULL ? *options : none;
}

int shmipc_region_create(const char *name,
                         const shmipc_region_options_t *options,
                         shmipc_region_t **out_region) {
  if (options == NULL || options->read_only) {
    return -EINVAL;
  }
  int status = 0;
  if (options->backend == SHMIPC_MEMFD) {
    return name != NULL ? -EINVAL
                        : shmipc_file_create(NULL, options, out_region);
  }
  name = shmipc_name_check(name, &status);
  if (name == NULL) {
    return status;
  }
  switch (options->backend) {
    case SHMIPC_POSIX:
      return shmipc_file_create(name, options, out_region);
    case SHMIPC_SYSV:
      return shmipc_sysv_create(name, options, out_region);
    default:
      return -EINVAL;
  }
}

int shmipc_region_open(const char *name, const shmipc_region_options_t *options,
                       shmipc_region_t **out_region) {
  shmipc_region_options_t effective = options_or_default(options);
  int status = 0;
  name = shmipc_name_check(name, &status);
  if (name == NULL) {
    return status;
  }
  switch (effective.backend) {
    case SHMIPC_POSIX:
      return shmipc_file_open(name, &effective, out_region);
    case SHMIPC_SYSV:
      return shmipc_sysv_open(name, &effective, out_region);
    default:
      return -EINVAL;
  }
}

int shmipc_region_create_or_open(const char *name,
                                 const shmipc_region_options_t *options,
                                 shmipc_region_t **out_region) {
  // Each turn of the loop means that the name came or went between two calls.
  for (int i = 0; i < 1000; i++) {
    int status = shmipc_region_open(name, options, out_region);
    if (status != -ENOENT) {
      return status;
    }
    status = shmipc_region_create(name, options, out_region);
    if (status != -EEXIST) {
      return status;
    }
  }
  return -EBUSY;
}

int shmipc_region_unlink(const char *name, shmipc_backend_t backend) {
  int status = 0;
  name = shmipc_name_check(name, &status);
  if (name == NULL) {
    return status;
  }
  switch (backend) {
    case SHMIPC_POSIX:
      return shmipc_file_unlink(name);
    case SHMIPC_SYSV:
      return shmipc_sysv_unlink(name);
    default:
      return -EINVAL;
  }
}
