// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What is longer than the caches comes at the speed of the memory, whatever the
// instructions; in the caches the longest registers make the difference, and a
// look ahead by instructions costs more than it brings: the processor's own is
// as good, and ends at the kernel's page only where the caches do, too.

#include "heap/zero.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "heap/harden.h"

enum {
  // From here on it is looked which pages are zero already.
  ZERO_BY_PAGE_MIN_BYTES = 256 << 10,
  // A program that writes to a page seldom leaves this much of its beginning.
  ZERO_LOOK_BYTES = 512,
  ZERO_STREAMING_MIN_BYTES = 4 << 20,
};

static bool is_zero(const void *ptr, size_t size_bytes) {
  const heap_chunk_t *chunks = ptr;
  const heap_chunk_t *end = chunks + size_bytes / sizeof(*chunks);
  heap_chunk_t sum = {0};
  heap_chunk_t sum2 = {0};
  while (end - chunks >= 16) {
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
// Written once, before there are blocks: what the processor has.
static bool has_avx2;
static bool has_avx512;

typedef uint64_t wide_t __attribute__((vector_size(32), aligned(1), may_alias));
typedef uint64_t widest_t
    __attribute__((vector_size(64), aligned(1), may_alias));

// At least one chunk long. The last chunk is counted first: some of its bytes
// may be so twice.
static __attribute__((target("avx2"))) bool is_zero_wide(const void *ptr,
                                                         size_t size_bytes) {
  const wide_t *chunks = ptr;
  const wide_t *end = chunks + size_bytes / sizeof(*chunks);
  wide_t sum =
      *(const wide_t *)((const char *)ptr + size_bytes - sizeof(*chunks));
  wide_t sum2 = {0};
  while (end - chunks >= 8) {
    sum |= chunks[0] | chunks[1] | chunks[2] | chunks[3];
    sum2 |= chunks[4] | chunks[5] | chunks[6] | chunks[7];
    chunks += 8;
  }
  for (; chunks < end; ++chunks) {
    sum |= *chunks;
  }
  sum |= sum2;
  return _mm256_testz_si256((__m256i)sum, (__m256i)sum) != 0;
}

static __attribute__((target("avx512f"))) bool is_zero_widest(
    const void *ptr, size_t size_bytes) {
  const widest_t *chunks = ptr;
  const widest_t *end = chunks + size_bytes / sizeof(*chunks);
  widest_t sum =
      *(const widest_t *)((const char *)ptr + size_bytes - sizeof(*chunks));
  widest_t sum2 = {0};
  while (end - chunks >= 4) {
    sum |= chunks[0] | chunks[1];
    sum2 |= chunks[2] | chunks[3];
    chunks += 4;
  }
  for (; chunks < end; ++chunks) {
    sum |= *chunks;
  }
  sum |= sum2;
  return _mm512_test_epi64_mask((__m512i)sum, (__m512i)sum) == 0;
}

void heap_zero_start(size_t most_bytes) {
  __builtin_cpu_init();
  has_avx2 =
      most_bytes >= sizeof(wide_t) && __builtin_cpu_supports("avx2") != 0;
  has_avx512 =
      most_bytes >= sizeof(widest_t) && __builtin_cpu_supports("avx512f") != 0;
}

bool heap_is_zero_long(const void *ptr, size_t size_bytes) {
  if (has_avx512 && size_bytes >= sizeof(widest_t)) {
    return is_zero_widest(ptr, size_bytes);
  }
  return has_avx2 && size_bytes >= sizeof(wide_t)
             ? is_zero_wide(ptr, size_bytes)
             : is_zero(ptr, size_bytes);
}

// Past the caches, which such a length would empty of all else.
static void zero_streaming(char *ptr, size_t size_bytes) {
  const __m128i zero = _mm_setzero_si128();
  for (size_t at = 0; at < size_bytes; at += 64) {
    _mm_stream_si128((__m128i *)(void *)(ptr + at), zero);
    _mm_stream_si128((__m128i *)(void *)(ptr + at + 16), zero);
    _mm_stream_si128((__m128i *)(void *)(ptr + at + 32), zero);
    _mm_stream_si128((__m128i *)(void *)(ptr + at + 48), zero);
  }
  _mm_sfence();
}
#else
void heap_zero_start(size_t most_bytes) {
  (void)most_bytes;
}

static void zero_streaming(char *ptr, size_t size_bytes) {
  memset(ptr, 0, size_bytes);
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

// Whole pages, or the last bytes, of a block of `block_bytes`.
static void zero_part(char *ptr, size_t size_bytes, size_t block_bytes) {
  size_t page_bytes = size_bytes & ~(size_t)(HEAP_GUARD_BYTES - 1);
  if (block_bytes < ZERO_STREAMING_MIN_BYTES) {
    page_bytes = 0;
  } else if (page_bytes > 0) {
    zero_streaming(ptr, page_bytes);
  }
  memset(ptr + page_bytes, 0, size_bytes - page_bytes);
}

void heap_zero_pages(void *ptr, size_t size_bytes) {
  char *bytes = ptr;
  size_t start = 0;  // Of pages that are not zero, in one go.
  size_t at = 0;
  while (size_bytes >= ZERO_BY_PAGE_MIN_BYTES &&
         at + HEAP_GUARD_BYTES <= size_bytes) {
    size_t next = at + HEAP_GUARD_BYTES;
    if (is_zero_page(bytes + at)) {
      zero_part(bytes + start, at - start, size_bytes);
      start = next;
    }
    at = next;
  }
  zero_part(bytes + start, size_bytes - start, size_bytes);
}
