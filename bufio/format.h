// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// format: numbers as text, straight into a writer's buffer or into memory.
//
// For: logs, CSV, JSON: what printf does, without its format string, locale and
// locks. Not for: padding, grouping, other bases, long double.
//
//   bufio_writer_put_u64(&writer, id);
//   bufio_writer_putc(&writer, ',');
//   bufio_writer_put_double(&writer, price);  // "0.1", all digits it needs
//
// Text is ASCII with a '.', whatever the locale. No NUL is added.
//
// Threads: those into memory from any; into a writer as writer.h says.

#ifndef MY_ALLOC_BUFIO_FORMAT_H_
#define MY_ALLOC_BUFIO_FORMAT_H_

#include <stddef.h>
#include <stdint.h>

#include "bufio/bufio.h"
#include "bufio/writer.h"

#ifdef __cplusplus
extern "C" {
#endif

// The room that each function below may need.
#define BUFIO_TEXT_U64_BYTES 20
#define BUFIO_TEXT_I64_BYTES 20
#define BUFIO_TEXT_HEX_BYTES 16
#define BUFIO_TEXT_DOUBLE_BYTES 32
#define BUFIO_TEXT_FIXED_DECIMALS_MAX 9
#define BUFIO_TEXT_FIXED_BYTES 330

// ---- into memory: each returns the length ----

BUFIO_API size_t bufio_text_u64(char *text, uint64_t value);
BUFIO_API size_t bufio_text_i64(char *text, int64_t value);

// Lower-case hexadecimal, with zeros in front up to `min_digits` (at most 16).
BUFIO_API size_t bufio_text_hex(char *text, uint64_t value,
                                unsigned min_digits);

// A text that strtod turns back into `value` exactly. Between 1e-5 and 2^53 it
// is the shortest one, and of those the closest to `value`; for smaller and
// larger numbers it has at most 17 digits. "12", "-0.5", "1e+100", "inf",
// "-inf", "nan".
BUFIO_API size_t bufio_text_double(char *text, double value);

// `decimals` (at most 9) digits after the point, rounded as printf's "%.*f"
// does, half to even on the exact value.
BUFIO_API size_t bufio_text_fixed(char *text, double value, unsigned decimals);

// ---- into a writer, as one record: 0, or the error of bufio_writer_write ----

BUFIO_API int bufio_writer_put_u64(bufio_writer_t *writer, uint64_t value);
BUFIO_API int bufio_writer_put_i64(bufio_writer_t *writer, int64_t value);
BUFIO_API int bufio_writer_put_hex(bufio_writer_t *writer, uint64_t value,
                                   unsigned min_digits);
BUFIO_API int bufio_writer_put_double(bufio_writer_t *writer, double value);
BUFIO_API int bufio_writer_put_fixed(bufio_writer_t *writer, double value,
                                     unsigned decimals);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_FORMAT_H_
