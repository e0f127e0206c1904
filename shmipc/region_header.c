// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The header of a region: made once, and distrusted by everybody else.
//
// An opener has a private copy of it, so that nobody changes a field between
// its check and its use. Every field either has one right value, given others
// (version, offsets), or a range; the whole has a hash, which finds accidents.
// A forger can make the hash right, so no check relies on it. The size is not
// in the header: the kernel is asked.

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shmipc/block_class.h"
#include "shmipc/region_internal.h"

#define FNV_BASIS 0xcbf29ce484222325u
#define FNV_PRIME 0x100000001b3u
#define HUGE_PAGE_BYTES (2u << 20)
#define DEFAULT_PROCESSES 64u
#define DEFAULT_THREADS 256u
// More than any machine has; sums of a few of them do not overflow.
#define BYTES_MAX ((uint64_t)1 << 46)

_Static_assert(sizeof(shmipc_slot_t) == 64, "a cache line");
_Static_assert(sizeof(shmipc_record_t) == 128, "two cache lines");
_Static_assert(offsetof(shmipc_header_t, hash) == 304, "documented");
_Static_assert(offsetof(shmipc_header_t, ready) == 320, "documented");
_Static_assert(offsetof(shmipc_header_t, records_used) == 384, "documented");
_Static_assert(sizeof(shmipc_header_t) <= SHMIPC_HEADER_BYTES, "its page");
_Static_assert(SHMIPC_NAME_MAX < sizeof(((shmipc_header_t *)0)->name), "NUL");
_Static_assert(SHMIPC_PROCESSES_MAX < 2047, "slot + 1 is in 11 bits");
_Static_assert(SHMIPC_THREADS_MAX < SHMIPC_WORD_GIVEN_UP, "index is 16 bits");

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t len) {
  const unsigned char *byte = bytes;
  for (size_t i = 0; i < len; i++) {
    hash = (hash ^ byte[i]) * FNV_PRIME;
  }
  return hash;
}

static uint64_t layout_hash(void) {
  const uint32_t facts[] = {
      SHMIPC_VERSION,
      SHMIPC_HEADER_BYTES,
      sizeof(shmipc_slot_t),
      sizeof(shmipc_record_t),
      SHMIPC_HOLDS_MAX,
      offsetof(shmipc_header_t, ready),
      offsetof(shmipc_record_t, holds),
      SHMIPC_WORD_OWNER,
      SHMIPC_PAGE_BYTES,
      SHMIPC_HEAP_HEAD_BYTES,
      SHMIPC_ROOTS_MAX,
      sizeof(shmipc_root_t),
      SHMIPC_TABLE_WORDS,
      sizeof(shmipc_heap_head_t),
  };
  // As words, so that the other byte order has another hash. The classes say
  // where the words of a page's blocks are.
  return hash_bytes(hash_bytes(FNV_BASIS, facts, sizeof(facts)), shmipc_classes,
                    sizeof(shmipc_classes));
}

uint64_t shmipc_header_hash(const shmipc_header_t *header) {
  return hash_bytes(FNV_BASIS, header, offsetof(shmipc_header_t, hash));
}

static bool round_up(uint64_t *bytes, uint64_t unit) {
  if (*bytes > BYTES_MAX) {
    return false;
  }
  *bytes = (*bytes + unit - 1) / unit * unit;
  return true;
}

// Puts the heap behind the data.
static int plan_heap(const shmipc_region_options_t *options,
                     shmipc_plan_t *plan) {
  uint64_t now_bytes = options->heap_bytes;
  uint64_t most_bytes = options->heap_capacity_bytes != 0
                            ? options->heap_capacity_bytes
                            : now_bytes;
  if (now_bytes == 0) {
    return most_bytes == 0 ? 0 : -EINVAL;
  }
  // Data before a heap cannot grow.
  if (most_bytes < now_bytes || plan->capacity_bytes != plan->total_bytes) {
    return -EINVAL;
  }
  if (options->backend == SHMIPC_SYSV && most_bytes != now_bytes) {
    return -EOPNOTSUPP;
  }
  if (!round_up(&now_bytes, SHMIPC_PAGE_BYTES) ||
      !round_up(&most_bytes, SHMIPC_PAGE_BYTES) ||
      most_bytes / SHMIPC_PAGE_BYTES > SHMIPC_PAGES_MAX) {
    return -EFBIG;
  }
  plan->heap_offset = plan->total_bytes;
  plan->heap_pages = (uint32_t)(most_bytes / SHMIPC_PAGE_BYTES);
  uint64_t pages_offset =
      plan->heap_offset + shmipc_heap_tables_bytes(plan->heap_pages);
  plan->total_bytes = pages_offset + now_bytes;
  plan->capacity_bytes = pages_offset + most_bytes;
  return round_up(&plan->total_bytes, plan->page_bytes) &&
                 round_up(&plan->capacity_bytes, plan->page_bytes)
             ? 0
             : -EFBIG;
}

int shmipc_plan_make(const shmipc_region_options_t *options,
                     shmipc_plan_t *out_plan) {
  shmipc_plan_t plan = {
      .num_slots = options->max_processes != 0 ? options->max_processes
                                               : DEFAULT_PROCESSES,
      .num_records =
          options->max_threads != 0 ? options->max_threads : DEFAULT_THREADS,
      .page_bytes = (uint32_t)sysconf(_SC_PAGESIZE),
  };
  uint64_t size_bytes = options->size_bytes;
  uint64_t capacity_bytes =
      options->capacity_bytes != 0 ? options->capacity_bytes : size_bytes;
  if (size_bytes == 0 || capacity_bytes < size_bytes ||
      plan.num_slots > SHMIPC_PROCESSES_MAX ||
      plan.num_records > SHMIPC_THREADS_MAX || (options->mode & ~0777u) != 0 ||
      options->num_undo_semaphores > SHMIPC_UNDO_SEMAPHORES_MAX) {
    return -EINVAL;
  }
  if (options->backend != SHMIPC_SYSV && options->num_undo_semaphores != 0) {
    return -EOPNOTSUPP;
  }
  if (options->backend == SHMIPC_SYSV && capacity_bytes != size_bytes) {
    return -EOPNOTSUPP;
  }
  if (options->huge_pages && options->backend != SHMIPC_POSIX) {
    plan.page_bytes = HUGE_PAGE_BYTES;
  }
  if (!round_up(&size_bytes, plan.page_bytes) ||
      !round_up(&capacity_bytes, plan.page_bytes)) {
    return -EFBIG;
  }
  plan.data_offset =
      shmipc_data_offset(plan.num_slots, plan.num_records, plan.page_bytes);
  plan.total_bytes = plan.data_offset + size_bytes;
  plan.capacity_bytes = plan.data_offset + capacity_bytes;
  int status = plan_heap(options, &plan);
  if (status == 0) {
    *out_plan = plan;
  }
  return status;
}

void shmipc_header_fill(shmipc_header_t *header, const char *name,
                        const shmipc_region_options_t *options,
                        const shmipc_plan_t *plan) {
  assert(plan->total_bytes <= plan->capacity_bytes);
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  memset(header, 0, sizeof(*header));
  header->magic = SHMIPC_MAGIC;
  header->version = SHMIPC_VERSION;
  header->header_bytes = SHMIPC_HEADER_BYTES;
  header->layout_hash = layout_hash();
  header->capacity_bytes = plan->capacity_bytes;
  header->data_offset = plan->data_offset;
  header->num_slots = plan->num_slots;
  header->num_records = plan->num_records;
  header->backend = options->backend;
  header->num_undo = options->num_undo_semaphores;
  header->page_bytes = plan->page_bytes;
  header->creator_pid = (uint32_t)getpid();
  header->created_s = (uint64_t)now.tv_sec;
  header->layout_tag = options->layout_tag;
  header->heap_offset = plan->heap_offset;
  header->heap_pages = plan->heap_pages;
  if (name != NULL) {
    memcpy(header->name, name, strlen(name));
  }
  header->hash = shmipc_header_hash(header);
}

// Its tables and one page are there, and all its pages are in the capacity.
static bool heap_is_whole(const shmipc_header_t *copy, uint64_t actual_bytes) {
  if (copy->heap_offset == 0) {
    return copy->heap_pages == 0;
  }
  if (copy->heap_pages == 0 || copy->heap_pages > SHMIPC_PAGES_MAX ||
      copy->heap_offset <= copy->data_offset ||
      copy->heap_offset >= actual_bytes ||
      copy->heap_offset % copy->page_bytes != 0) {
    return false;
  }
  uint64_t pages_offset =
      copy->heap_offset + shmipc_heap_tables_bytes(copy->heap_pages);
  return pages_offset + SHMIPC_PAGE_BYTES <= actual_bytes &&
         pages_offset + (uint64_t)copy->heap_pages * SHMIPC_PAGE_BYTES <=
             copy->capacity_bytes;
}

bool shmipc_header_is_ours(const shmipc_header_t *copy, uint64_t actual_bytes) {
  return copy->magic == SHMIPC_MAGIC && copy->version == SHMIPC_VERSION &&
         copy->header_bytes == SHMIPC_HEADER_BYTES &&
         copy->layout_hash == layout_hash() &&
         copy->hash == shmipc_header_hash(copy) &&
         copy->ready == SHMIPC_READY && copy->num_slots >= 1 &&
         copy->num_slots <= SHMIPC_PROCESSES_MAX && copy->num_records >= 1 &&
         copy->num_records <= SHMIPC_THREADS_MAX &&
         copy->backend <= SHMIPC_MEMFD &&
         copy->num_undo <= SHMIPC_UNDO_SEMAPHORES_MAX &&
         (copy->page_bytes == (uint32_t)sysconf(_SC_PAGESIZE) ||
          copy->page_bytes == HUGE_PAGE_BYTES) &&
         copy->data_offset == shmipc_data_offset(copy->num_slots,
                                                 copy->num_records,
                                                 copy->page_bytes) &&
         actual_bytes > copy->data_offset &&
         actual_bytes % copy->page_bytes == 0 &&
         copy->capacity_bytes >= actual_bytes &&
         copy->capacity_bytes <= 2 * BYTES_MAX &&
         copy->name[sizeof(copy->name) - 1] == '\0' &&
         heap_is_whole(copy, actual_bytes);
}

int shmipc_header_accept(const shmipc_header_t *copy, uint64_t actual_bytes,
                         const shmipc_region_options_t *options,
                         shmipc_region_t *region) {
  if (!shmipc_header_is_ours(copy, actual_bytes) ||
      copy->backend != region->backend) {
    return -EPROTO;
  }
  if (options->layout_tag != 0 && options->layout_tag != copy->layout_tag) {
    return -EBADMSG;
  }
  region->num_slots = copy->num_slots;
  region->num_records = copy->num_records;
  region->num_undo = copy->num_undo;
  region->page_bytes = copy->page_bytes;
  region->capacity_bytes = copy->capacity_bytes;
  region->data_offset = copy->data_offset;
  region->layout_tag = copy->layout_tag;
  region->header_hash = copy->hash;
  region->heap_offset = copy->heap_offset;
  region->heap_pages = copy->heap_pages;
  return 0;
}

const char *shmipc_name_check(const char *name, int *out_status) {
  *out_status = -EINVAL;
  if (name == NULL) {
    return NULL;
  }
  name += name[0] == '/';
  // Those with the prefix are on their way to being regions (region_file.c).
  if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
      strncmp(name, ".shmipc.", 8) == 0 || strchr(name, '/') != NULL) {
    return NULL;
  }
  if (strlen(name) > SHMIPC_NAME_MAX) {
    *out_status = -ENAMETOOLONG;
    return NULL;
  }
  *out_status = 0;
  return name;
}
