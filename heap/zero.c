// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What is longer than the caches comes at the speed of the memory, whatever the
// instructions; in the caches those of 32 bytes take two thirds of the time.

#include "heap/zero.h"

#include "heap/harden.h"

enum {
  // From here on it is looked which pages are zero already.
  ZERO_BY_PAGE_MIN_BYTES = 256 << 10,
  // A program that writes to a page seldom leaves this much of its beginning.
  ZERO_LOOK_BYTES = 512,
  PREFETCH_BYTES = 1024,
};

static inline __attribute__((always_inline)) bool is_zero(const void *ptr,
                                                          size_t size_bytes) {
  const heap_chunk_t *chunks = ptr;
  const heap_chunk_t *end = chunks + size_bytes / sizeof(*chunks);
  heap_chunk_t sum = {0};
  heap_chunk_t sum2 = {0};
  while (end - chunks >= 16) {
    // The processor's own look ahead ends at the kernel's page.
    for (size_t i = 0; i < 16; i += 4) {
      __builtin_prefetch((const char *)(chunks + i) + PREFETCH_BYTES);
    }
    sum |= (chunks[0] | chunks[1] | chunks[2] | chunks[3]) |
           (chunks[4] | chunks[5] | chunks[6] | chunks[7]);
    sum2 |= (chunks[8] | chunks[9] | chunks[10] | chunks[11]) |
            (chunks[12] | chunks[13] | chunks[14] | chunks[15]);
    chunks += 16;
  }
  for (; chunks < end; ++chunks) {
    sum |= *chunks;
  }
  sum |= sum2;
  return (sum[0] | sum[1]) == 0;
}

#ifdef __x86_64__
static bool has_avx2;  // Written once, before there are blocks.

typedef uint64_t wide_t __attribute__((vector_size(32), aligned(1), may_alias));

static __attribute__((target("avx2"))) bool is_zero_wide(const void *ptr,
                                                         size_t size_bytes) {
  const wide_t *chunks = ptr;
  const wide_t *end = chunks + size_bytes / sizeof(*chunks);
  // The last ones, of which some may be counted twice.
  const wide_t *last =
      (const wide_t *)((const char *)ptr + size_bytes - sizeof(*last));
  wide_t sum = *last;
  wide_t sum2 = {0};
  while (end - chunks >= 8) {
    for (size_t i = 0; i < 8; i += 2) {
      __builtin_prefetch((const char *)(chunks + i) + PREFETCH_BYTES);
    }
    sum |= chunks[0] | chunks[1] | chunks[2] | chunks[3];
    sum2 |= chunks[4] | chunks[5] | chunks[6] | chunks[7];
    chunks += 8;
  }
  for (; chunks < end; ++chunks) {
    sum |= *chunks;
  }
  sum |= sum2;
  return (sum[0] | sum[1] | sum[2] | sum[3]) == 0;
}

void heap_zero_start(void) {
  __builtin_cpu_init();
  has_avx2 = __builtin_cpu_supports("avx2") != 0;
}

bool heap_is_zero_long(const void *ptr, size_t size_bytes) {
  return has_avx2 && size_bytes >= sizeof(wide_t)
             ? is_zero_wide(ptr, size_bytes)
             : is_zero(ptr, size_bytes);
}
#else
void heap_zero_start(void) {
}

bool heap_is_zero_long(const void *ptr, size_t size_bytes) {
  return is_zero(ptr, size_bytes);
}
#endif

static bool is_zero_page(const char *page) {
  return heap_is_zero_long(page, ZERO_LOOK_BYTES) &&
         heap_is_zero_long(page + ZERO_LOOK_BYTES,
                           HEAP_GUARD_BYTES - ZERO_LOOK_BYTES);
}

void heap_zero_pages(void *ptr, size_t size_bytes) {
  char *bytes = ptr;
  size_t start = 0;  // Of pages that are not zero, in one go.
  size_t at = 0;
  while (size_bytes >= ZERO_BY_PAGE_MIN_BYTES &&
         at + HEAP_GUARD_BYTES <= size_bytes) {
    size_t next = at + HEAP_GUARD_BYTES;
    if (is_zero_page(bytes + at)) {
      memset(bytes + start, 0, at - start);
      start = next;
    }
    at = next;
  }
  memset(bytes + start, 0, size_bytes - start);
}
