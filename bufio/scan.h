// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// scan: where in a stretch of memory a byte occurs, at the speed of memory.
//
// For: splitting text by hand that is in memory already. Not for: a single
// search (memchr is as fast), or patterns of more than one byte.
//
//   uint32_t ends[64];
//   size_t scanned;
//   size_t count = bufio_scan_index(text, len, '\n', ends, 64, &scanned);
//   // text[ends[0]] ... text[ends[count - 1]] are the first line feeds, and
//   // there are no others in text[0, scanned).
//
// The widest vector instructions that the processor and the kernel support are
// chosen when the process starts (x86: AVX-512 VBMI2, AVX2, SSE2); elsewhere
// eight bytes a step.
//
// Threads: any.

#ifndef MY_ALLOC_BUFIO_SCAN_H_
#define MY_ALLOC_BUFIO_SCAN_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

// The least capacity that lets `bufio_scan_index` make progress whatever the
// bytes are.
#define BUFIO_SCAN_CAPACITY_MIN 64

// Stores, in ascending order, the offsets of all bytes equal to `wanted` in
// bytes[0, *out_scanned), and returns how many there are: at most `capacity`,
// which is at least BUFIO_SCAN_CAPACITY_MIN. The rest of `offsets` is left
// undefined. *out_scanned is less than `len` only if the offsets would not fit,
// and then at least 1. `len` is at most UINT32_MAX. Never reads outside
// bytes[0, len).
BUFIO_API size_t bufio_scan_index(const unsigned char *bytes, size_t len,
                                  unsigned char wanted, uint32_t *offsets,
                                  size_t capacity, size_t *out_scanned);

// Returns how many of bytes[0, len) are equal to `wanted`.
BUFIO_API size_t bufio_scan_count(const unsigned char *bytes, size_t len,
                                  unsigned char wanted);

// The implementations, for tests and benchmarks.
typedef enum bufio_scan_level {
  BUFIO_SCAN_PORTABLE,
  BUFIO_SCAN_SSE2,
  BUFIO_SCAN_AVX2,
  BUFIO_SCAN_AVX512,
} bufio_scan_level_t;

// Makes all scans use `level`, or says false when the processor cannot. While
// no other thread scans.
BUFIO_API bool bufio_scan_use(bufio_scan_level_t level);

// Returns the level in use.
BUFIO_API bufio_scan_level_t bufio_scan_current(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_SCAN_H_
