// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Splitting text a line at a time costs a mispredicted branch a line: the
// search loop ends after a number of steps that nobody can foresee. So
// positions are extracted in bulk, 64 bytes at a time, with no branch that
// depends on the text:
//
//   64 bytes -> compare -> one bit a byte -> four offsets stored, always;
//   the output pointer moves by popcount(bits)
//
// Offsets stored beyond the count are garbage that the next block overwrites.
// Only a block with more than four hits (lines of less than 16 bytes) branches.
// The caller then walks an array, which it does without a surprise.
//
// One block of AVX-512 is a compare into a mask, a compress of 0..63 by the
// mask, and a widening of its low bytes. AVX2 and SSE2 get the mask by movemask
// and extract bits with ctz. The portable version makes the mask from eight
// words by arithmetic.
//
// The last block of less than 64 bytes is copied to a padded one of its own:
// nothing outside [bytes, bytes + len) is read.
//
// Invariants of each extract function, given `bits` and the block's offset:
// 1. It may write offsets[0, 64) whatever the bits: the caller's room is there.
// 2. offsets[0, popcount(bits)) are right.

#include "bufio/scan.h"

#include <assert.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define SCAN_X86 1
#else
#define SCAN_X86 0
#endif

#define BLOCK_BYTES 64u

static_assert(BUFIO_SCAN_CAPACITY_MIN >= BLOCK_BYTES,
              "one block may hold as many offsets as bytes");

typedef size_t scan_function_t(const unsigned char *bytes, size_t len,
                               unsigned char wanted, uint32_t *offsets,
                               size_t capacity, size_t *out_scanned);
typedef size_t count_function_t(const unsigned char *bytes, size_t len,
                                unsigned char wanted);

// Bit 7 of each byte of the result is set where `word`'s byte equals that of
// `pattern`. Exact: no carry leaves a byte.
static inline uint64_t equal_bytes(uint64_t word, uint64_t pattern) {
  const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
  uint64_t difference = word ^ pattern;
  return ~(((difference & low) + low) | difference | low);
}

// Gathers the eight bits 7 into one byte, that of the lowest address lowest.
static inline uint64_t gather_bits(uint64_t marks) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  marks = __builtin_bswap64(marks);
#endif
  return (marks >> 7) * 0x0102040810204080u >> 56;
}

static inline uint64_t block_bits_portable(const unsigned char *block,
                                           unsigned char wanted) {
  uint64_t pattern = wanted * 0x0101010101010101u;
  uint64_t bits = 0;
  for (unsigned i = 0; i < BLOCK_BYTES / 8; i++) {
    uint64_t word;
    memcpy(&word, block + 8 * i, sizeof(word));
    bits |= gather_bits(equal_bytes(word, pattern)) << 8 * i;
  }
  return bits;
}

// Without the instruction __builtin_popcountll is a call.
static inline unsigned count_bits(uint64_t bits) {
  bits -= bits >> 1 & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
  bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return (unsigned)(bits * 0x0101010101010101u >> 56);
}

// Stores the positions of the set bits: four whatever they are, more only for
// a block of short lines.
static inline void extract_bits(uint64_t bits, uint32_t offset,
                                uint32_t *offsets) {
  do {
    for (unsigned i = 0; i < 4; i++) {
      // Of no bits ctz is undefined; the value does not matter then.
      offsets[i] = offset + (uint32_t)__builtin_ctzll(bits | 1ull << 63);
      bits &= bits - 1;
    }
    offsets += 4;
  } while (__builtin_expect(bits != 0, 0));
}

// The loop that all levels share; `block_bits` and `extract` are inlined.
#define SCAN_FUNCTION(name, target, block_bits, extract, popcount)     \
  target static size_t name(const unsigned char *bytes, size_t len,    \
                            unsigned char wanted, uint32_t *offsets,   \
                            size_t capacity, size_t *out_scanned) {    \
    uint32_t *next = offsets;                                          \
    const uint32_t *last = offsets + capacity - BLOCK_BYTES;           \
    size_t i = 0;                                                      \
    for (; i + BLOCK_BYTES <= len && next <= last; i += BLOCK_BYTES) { \
      uint64_t bits = block_bits(bytes + i, wanted);                   \
      extract(bits, (uint32_t)i, next);                                \
      next += popcount(bits);                                          \
    }                                                                  \
    if (i < len && next <= last) {                                     \
      size_t rest = len - i < BLOCK_BYTES ? len - i : BLOCK_BYTES;     \
      unsigned char block[BLOCK_BYTES] = {0};                          \
      memcpy(block, bytes + i, rest);                                  \
      uint64_t bits = block_bits(block, wanted);                       \
      bits &= rest < BLOCK_BYTES ? (1ull << rest) - 1 : ~0ull;         \
      extract(bits, (uint32_t)i, next);                                \
      next += popcount(bits);                                          \
      i += rest;                                                       \
    }                                                                  \
    *out_scanned = i;                                                  \
    return (size_t)(next - offsets);                                   \
  }

#define COUNT_FUNCTION(name, target, block_bits, popcount)          \
  target static size_t name(const unsigned char *bytes, size_t len, \
                            unsigned char wanted) {                 \
    size_t count = 0;                                               \
    size_t i = 0;                                                   \
    for (; i + BLOCK_BYTES <= len; i += BLOCK_BYTES) {              \
      count += (size_t)popcount(block_bits(bytes + i, wanted));     \
    }                                                               \
    for (; i < len; i++) {                                          \
      count += bytes[i] == wanted;                                  \
    }                                                               \
    return count;                                                   \
  }

SCAN_FUNCTION(scan_portable, , block_bits_portable, extract_bits, count_bits)
COUNT_FUNCTION(count_portable, , block_bits_portable, count_bits)

#if SCAN_X86

static inline uint64_t block_bits_sse2(const unsigned char *block,
                                       unsigned char wanted) {
  const __m128i pattern = _mm_set1_epi8((char)wanted);
  uint64_t bits = 0;
  for (unsigned i = 0; i < BLOCK_BYTES / 16; i++) {
    __m128i part = _mm_loadu_si128((const __m128i *)(block + 16 * i));
    uint32_t mask = (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(part, pattern));
    bits |= (uint64_t)mask << 16 * i;
  }
  return bits;
}

#define TARGET_AVX2 __attribute__((target("avx2,bmi,popcnt")))
#define TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,bmi,popcnt")))

TARGET_AVX2 static inline uint64_t block_bits_avx2(const unsigned char *block,
                                                   unsigned char wanted) {
  const __m256i pattern = _mm256_set1_epi8((char)wanted);
  __m256i low = _mm256_loadu_si256((const __m256i *)block);
  __m256i high = _mm256_loadu_si256((const __m256i *)(block + 32));
  uint32_t low_bits =
      (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, pattern));
  uint32_t high_bits =
      (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, pattern));
  return low_bits | (uint64_t)high_bits << 32;
}

// Four stores whatever the bits, more only for a block of short lines.
TARGET_AVX2 static inline void extract_bits_avx2(uint64_t bits, uint32_t offset,
                                                 uint32_t *offsets) {
  do {
    for (unsigned i = 0; i < 4; i++) {
      offsets[i] = offset + (uint32_t)_tzcnt_u64(bits);
      bits = _blsr_u64(bits);
    }
    offsets += 4;
  } while (__builtin_expect(bits != 0, 0));
}

TARGET_AVX512 static inline uint64_t block_bits_avx512(
    const unsigned char *block, unsigned char wanted) {
  return _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(block),
                                _mm512_set1_epi8((char)wanted));
}

static const unsigned char block_positions[BLOCK_BYTES] = {
    0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
    32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
    48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};

// Four stored whatever the bits: wider stores cross cache lines more often. One
// port does all shuffles, so the offset comes from the caller in a register
// rather than by a broadcast a block.
TARGET_AVX512 static inline void extract_bits_avx512(uint64_t bits,
                                                     __m128i base,
                                                     uint32_t *offsets) {
  __m512i hits =
      _mm512_maskz_compress_epi8(bits, _mm512_loadu_si512(block_positions));
  __m128i low = _mm_cvtepu8_epi32(_mm512_castsi512_si128(hits));
  _mm_storeu_si128((__m128i *)offsets, _mm_add_epi32(low, base));
  int count = __builtin_popcountll(bits);
  if (__builtin_expect(count <= 4, 1)) {
    return;
  }
  for (int i = 0; i < count; i += 16) {
    __m512i wide = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(hits));
    _mm512_storeu_si512(offsets + i,
                        _mm512_add_epi32(wide, _mm512_broadcastd_epi32(base)));
    // The next 16 bytes come down to the bottom.
    hits = _mm512_alignr_epi32(_mm512_setzero_si512(), hits, 4);
  }
}

TARGET_AVX512 static size_t scan_avx512(const unsigned char *bytes, size_t len,
                                        unsigned char wanted, uint32_t *offsets,
                                        size_t capacity, size_t *out_scanned) {
  uint32_t *next = offsets;
  const uint32_t *last = offsets + capacity - BLOCK_BYTES;
  const __m512i pattern = _mm512_set1_epi8((char)wanted);
  const __m128i step = _mm_set1_epi32(BLOCK_BYTES);
  __m128i base = _mm_setzero_si128();
  size_t i = 0;
  for (; i + BLOCK_BYTES <= len && next <= last; i += BLOCK_BYTES) {
    uint64_t bits =
        _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(bytes + i), pattern);
    extract_bits_avx512(bits, base, next);
    next += __builtin_popcountll(bits);
    base = _mm_add_epi32(base, step);
  }
  if (i < len && next <= last) {
    size_t rest = len - i < BLOCK_BYTES ? len - i : BLOCK_BYTES;
    uint64_t some = rest < BLOCK_BYTES ? (1ull << rest) - 1 : ~0ull;
    __m512i block = _mm512_maskz_loadu_epi8(some, bytes + i);
    uint64_t bits = _mm512_mask_cmpeq_epi8_mask(some, block, pattern);
    extract_bits_avx512(bits, base, next);
    next += __builtin_popcountll(bits);
    i += rest;
  }
  *out_scanned = i;
  return (size_t)(next - offsets);
}

SCAN_FUNCTION(scan_sse2, , block_bits_sse2, extract_bits, count_bits)
COUNT_FUNCTION(count_sse2, , block_bits_sse2, count_bits)
SCAN_FUNCTION(scan_avx2, TARGET_AVX2, block_bits_avx2, extract_bits_avx2,
              __builtin_popcountll)
COUNT_FUNCTION(count_avx2, TARGET_AVX2, block_bits_avx2, __builtin_popcountll)
COUNT_FUNCTION(count_avx512, TARGET_AVX512, block_bits_avx512,
               __builtin_popcountll)

#endif  // SCAN_X86

// Immutable after the constructor, but for `bufio_scan_use`. The initial
// values serve constructors that run before ours.
static struct {
  bufio_scan_level_t level;
  scan_function_t *scan;
  count_function_t *count;
} dispatch = {BUFIO_SCAN_PORTABLE, scan_portable, count_portable};

bool bufio_scan_use(bufio_scan_level_t level) {
  scan_function_t *scan = NULL;
  count_function_t *count = NULL;
  switch (level) {
    case BUFIO_SCAN_PORTABLE:
      scan = scan_portable;
      count = count_portable;
      break;
#if SCAN_X86
    case BUFIO_SCAN_SSE2:
      scan = scan_sse2;
      count = count_sse2;
      break;
    case BUFIO_SCAN_AVX2:
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
          __builtin_cpu_supports("popcnt")) {
        scan = scan_avx2;
        count = count_avx2;
      }
      break;
    case BUFIO_SCAN_AVX512:
      if (__builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512vbmi2") &&
          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt")) {
        scan = scan_avx512;
        count = count_avx512;
      }
      break;
#endif
    default:
      break;
  }
  if (scan == NULL) {
    return false;
  }
  dispatch.level = level;
  dispatch.scan = scan;
  dispatch.count = count;
  return true;
}

__attribute__((constructor)) static void choose_level(void) {
#if SCAN_X86
  __builtin_cpu_init();
#endif
  for (int level = BUFIO_SCAN_AVX512; level > BUFIO_SCAN_PORTABLE; level--) {
    if (bufio_scan_use((bufio_scan_level_t)level)) {
      return;
    }
  }
}

bufio_scan_level_t bufio_scan_current(void) {
  return dispatch.level;
}

size_t bufio_scan_index(const unsigned char *bytes, size_t len,
                        unsigned char wanted, uint32_t *offsets,
                        size_t capacity, size_t *out_scanned) {
  return dispatch.scan(bytes, len, wanted, offsets, capacity, out_scanned);
}

size_t bufio_scan_count(const unsigned char *bytes, size_t len,
                        unsigned char wanted) {
  return dispatch.count(bytes, len, wanted);
}
