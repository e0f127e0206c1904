// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// CRC-32C (Castagnoli) of bytes that come a few at a time. Internal to the
// heaplog library.
//
//   uint32_t state = HEAPLOG_CRC32C_INITIAL_STATE;
//   state = heaplog_crc32c_extend(hardware, state, bytes, size_bytes);
//   uint32_t crc = heaplog_crc32c_value(state);
//
// `hardware` is what heaplog_crc32c_has_hardware() said; callers keep it, as
// asking costs more than a short update.

#ifndef MY_ALLOC_LEAKCHECK_CRC32C_H_
#define MY_ALLOC_LEAKCHECK_CRC32C_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HEAPLOG_CRC32C_INITIAL_STATE UINT32_C(0xffffffff)

// Returns whether this processor has CRC-32C instructions that this code uses
// (x86-64 with SSE4.2). Takes no lock and keeps no state.
bool heaplog_crc32c_has_hardware(void);

// The same on every processor, about ten times slower.
uint32_t heaplog_crc32c_extend_portable(uint32_t state, const void *data,
                                        size_t size_bytes);

static inline uint32_t heaplog_crc32c_value(uint32_t state) {
  return ~state;
}

#if defined(__x86_64__)
// Inline assembly rather than intrinsics: those need the whole calling function
// compiled for SSE4.2, and then no other CPU could run it.
static inline uint32_t heaplog_crc32c_extend_sse42(uint32_t state,
                                                   const unsigned char *bytes,
                                                   size_t size_bytes) {
  uint64_t crc = state;
  uint64_t word;
  for (; size_bytes >= sizeof(word); size_bytes -= sizeof(word)) {
    memcpy(&word, bytes, sizeof(word));
    __asm__("crc32q %1, %0" : "+r"(crc) : "r"(word));
    bytes += sizeof(word);
  }
  state = (uint32_t)crc;
  if ((size_bytes & 4) != 0) {
    uint32_t half;
    memcpy(&half, bytes, sizeof(half));
    __asm__("crc32l %1, %0" : "+r"(state) : "r"(half));
    bytes += sizeof(half);
  }
  if ((size_bytes & 2) != 0) {
    uint16_t quarter;
    memcpy(&quarter, bytes, sizeof(quarter));
    __asm__("crc32w %1, %0" : "+r"(state) : "r"(quarter));
    bytes += sizeof(quarter);
  }
  if ((size_bytes & 1) != 0) {
    __asm__("crc32b %1, %0" : "+r"(state) : "r"(*bytes));
  }
  return state;
}
#endif

static inline uint32_t heaplog_crc32c_extend(bool hardware, uint32_t state,
                                             const void *data,
                                             size_t size_bytes) {
#if defined(__x86_64__)
  if (hardware) {
    return heaplog_crc32c_extend_sse42(state, (const unsigned char *)data,
                                       size_bytes);
  }
#else
  (void)hardware;
#endif
  return heaplog_crc32c_extend_portable(state, data, size_bytes);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_CRC32C_H_
