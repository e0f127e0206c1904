// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Integers: the number of digits is known before the first is written (a table
// by the position of the highest bit), so they are put in place from the back,
// two at a time, without a reversal.
//
// Doubles. Most of those that programs print came from a decimal number of few
// digits. For such a one there is an integer r below 2^51 and an n with
// r / 10^n == value, where the division is that of two exact doubles and hence
// correctly rounded; so the text "r with a point before its last n digits"
// reads back as `value`. The smallest such n is looked for by multiplying; that
// the product is rounded does not matter, because r is verified by the
// division.
//
// Results of computations have 16 or 17 digits. All decimals between the halves
// to the next doubles read back as the value m * 2^e; wanted is the one with
// the fewest digits, and of those the closest. Between 1e-5 and 2^53 the
// bounds, times the power of ten that gives them 17 digits, are fractions with
// numerators of less than 127 bits and a power of two below: so two shifts make
// the bounds integers, exactly, and digits are dropped as long as an integer
// remains between them. No table and no estimate is in it. What is smaller or
// larger goes through snprintf, with 16 and then 17 digits.
//
// Fixed: value * 10^d as an exact sum of two doubles (Dekker's product, from
// halves of 26 bits), so ties are told from near-ties and rounding is that of
// the exact value, without a wide integer.

#include "bufio/format.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAST_DECIMALS_MAX 15
// With more of them `put_shortest` is as fast as to go on trying.
#define SOME_DECIMALS 7
// Below it a product's error is less than a half.
#define FAST_INTEGER_MAX 2251799813685248.0  // 2^51
// What `put_shortest` does.
#define EXACT_MIN 1e-5
#define EXACT_MAX 9007199254740992.0  // 2^53
#define MANTISSA_BITS 52

// 128 bits.
__extension__ typedef unsigned __int128 wide_t;

static const char digit_pairs[201] =
    "00010203040506070809101112131415161718192021222324252627282930313233343536"
    "37383940414243444546474849505152535455565758596061626364656667686970717273"
    "7475767778798081828384858687888990919293949596979899";

static const uint64_t powers_of_10[20] = {
    1u,
    10u,
    100u,
    1000u,
    10000u,
    100000u,
    1000000u,
    10000000u,
    100000000u,
    1000000000u,
    10000000000u,
    100000000000u,
    1000000000000u,
    10000000000000u,
    100000000000000u,
    1000000000000000u,
    10000000000000000u,
    100000000000000000u,
    1000000000000000000u,
    10000000000000000000u,
};

static_assert(FAST_DECIMALS_MAX <= 22, "powers of 10 must be exact doubles");

static size_t count_digits(uint64_t value) {
  // log10(2) as a fraction; the table corrects the one that is too many.
  unsigned bits = 64 - (unsigned)__builtin_clzll(value | 1);
  unsigned guess = bits * 1233 >> 12;
  return guess + (value >= powers_of_10[guess] || guess == 0);
}

// Puts exactly `count` digits, zeros in front if need be.
static void put_digits(char *text, uint64_t value, size_t count) {
  char *end = text + count;
  while (end - text >= 2) {
    end -= 2;
    memcpy(end, digit_pairs + 2 * (value % 100), 2);
    value /= 100;
  }
  if (end != text) {
    *text = (char)('0' + value % 10);
  }
}

size_t bufio_text_u64(char *text, uint64_t value) {
  size_t count = count_digits(value);
  put_digits(text, value, count);
  return count;
}

size_t bufio_text_i64(char *text, int64_t value) {
  if (value >= 0) {
    return bufio_text_u64(text, (uint64_t)value);
  }
  *text = '-';
  return 1 + bufio_text_u64(text + 1, -(uint64_t)value);
}

size_t bufio_text_hex(char *text, uint64_t value, unsigned min_digits) {
  unsigned bits = 64 - (unsigned)__builtin_clzll(value | 1);
  unsigned count = (bits + 3) / 4;
  min_digits = min_digits < 16 ? min_digits : 16;
  count = count < min_digits ? min_digits : count;
  for (unsigned i = count; i-- > 0; value >>= 4) {
    text[i] = "0123456789abcdef"[value & 15];
  }
  return count;
}

// ---- doubles ----

// "inf", "nan" and the sign; true if that is all.
static bool put_special(char *text, double *value, size_t *out_len) {
  size_t len = 0;
  if (*value != *value) {
    memcpy(text, "nan", 3);
    *out_len = 3;
    return true;
  }
  if (__builtin_signbit(*value)) {
    text[len++] = '-';
    *value = -*value;
  }
  bool is_infinite = *value > 1.7976931348623157e308;
  if (is_infinite) {
    memcpy(text + len, "inf", 3);
    len += 3;
  }
  *out_len = len;
  return is_infinite;
}

// `digits` with a point before the last `decimals`.
static size_t put_decimal(char *text, uint64_t digits, unsigned decimals) {
  // More digits behind the point than a number has.
  uint64_t power = decimals < 20 ? powers_of_10[decimals] : UINT64_MAX;
  size_t len = bufio_text_u64(text, digits / power);
  if (decimals != 0) {
    text[len++] = '.';
    put_digits(text + len, digits % power, decimals);
    len += decimals;
  }
  return len;
}

// snprintf's text in the "C" locale: whatever stands for the point becomes one.
static size_t copy_without_locale(char *text, const char *printed) {
  size_t len = 0;
  for (const char *p = printed; *p != '\0'; p++) {
    if (strchr("0123456789+-e", *p) != NULL) {
      text[len++] = *p;
    } else if (len == 0 || text[len - 1] != '.') {
      text[len++] = '.';
    }
  }
  return len;
}

// The integers whose text, with the point moved, reads back as the value.
typedef struct interval {
  wide_t middle;  // The value times 4 * 10^scale * 2^shift; no integer yet.
  unsigned shift;
  unsigned scale;
  uint64_t low;
  uint64_t high;
} interval_t;

// The power of ten that makes an integer part of 17 digits, or of 16 nines.
static unsigned scale_of(double value) {
  if (value >= 1) {
    return 17 - (unsigned)count_digits((uint64_t)value);
  }
  unsigned scale = 16;
  while (value < 1) {
    value *= 10;
    scale++;
  }
  return scale;
}

static wide_t power_of_10(unsigned exponent) {
  return exponent < 20 ? powers_of_10[exponent]
                       : (wide_t)powers_of_10[19] * powers_of_10[exponent - 19];
}

static interval_t interval_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  uint64_t fraction = bits & ((1ull << MANTISSA_BITS) - 1);
  uint64_t mantissa = fraction | 1ull << MANTISSA_BITS;
  // value = mantissa * 2^exponent; quarters, so that halves are integers.
  int exponent = (int)(bits >> MANTISSA_BITS) - 1023 - MANTISSA_BITS;
  assert(exponent <= 0 && exponent >= -69);
  interval_t interval = {.shift = (unsigned)(2 - exponent),
                         .scale = scale_of(value)};
  assert(interval.scale <= 21);
  wide_t power = power_of_10(interval.scale);
  wide_t unit = (wide_t)1 << interval.shift;
  interval.middle = 4 * mantissa * power;
  // Below a power of two doubles are twice as dense.
  wide_t low = interval.middle - (fraction != 0 ? 2 : 1) * power;
  wide_t high = interval.middle + 2 * power;
  // strtod takes a half to the even mantissa.
  bool is_even = mantissa % 2 == 0;
  interval.low =
      (uint64_t)((low + (is_even ? unit - 1 : unit)) >> interval.shift);
  interval.high = (uint64_t)((high - (is_even ? 0 : 1)) >> interval.shift);
  assert(interval.low <= interval.high);
  return interval;
}

// Of the integers between the bounds the one closest to the middle, when
// `power` is what has been divided by.
static uint64_t closest(const interval_t *interval, uint64_t power) {
  wide_t unit = (wide_t)power << interval->shift;
  uint64_t below = (uint64_t)(interval->middle >> interval->shift) / power;
  wide_t rest = interval->middle - below * unit;
  bool is_up = rest > unit - rest || (rest == unit - rest && below % 2 == 1);
  uint64_t best = below + is_up;
  best = best < interval->low ? interval->low : best;
  return best > interval->high ? interval->high : best;
}

// EXACT_MIN <= value < EXACT_MAX.
static size_t put_shortest(char *text, double value) {
  interval_t interval = interval_of(value);
  unsigned dropped = 0;
  for (;;) {
    uint64_t low = (interval.low + 9) / 10;
    uint64_t high = interval.high / 10;
    if (low > high) {
      break;
    }
    interval.low = low;
    interval.high = high;
    dropped++;
  }
  uint64_t digits = closest(&interval, powers_of_10[dropped]);
  if (dropped > interval.scale) {
    digits *= powers_of_10[dropped - interval.scale];
    dropped = interval.scale;
  }
  return put_decimal(text, digits, interval.scale - dropped);
}

static size_t put_double_slow(char *text, double value) {
  char printed[64];
  for (int digits = 16; digits <= 17; digits++) {
    snprintf(printed, sizeof(printed), "%.*g", digits, value);
    if (strtod(printed, NULL) == value) {
      break;
    }
  }
  return copy_without_locale(text, printed);
}

size_t bufio_text_double(char *text, double value) {
  size_t len = 0;
  if (put_special(text, &value, &len)) {
    return len;
  }
  bool is_exact = value >= EXACT_MIN && value < EXACT_MAX;
  if (value < FAST_INTEGER_MAX && (value >= 1e-6 || value == 0)) {
    unsigned last = is_exact ? SOME_DECIMALS : FAST_DECIMALS_MAX;
    for (unsigned n = 0; n <= last; n++) {
      double power = (double)powers_of_10[n];
      double product = value * power + 0.5;
      if (product >= FAST_INTEGER_MAX) {
        break;
      }
      uint64_t digits = (uint64_t)product;
      if ((double)digits / power == value) {
        return len + put_decimal(text + len, digits, n);
      }
    }
  }
  return len + (is_exact ? put_shortest(text + len, value)
                         : put_double_slow(text + len, value));
}

// a * b as *out_high + the result, exactly; |a * b| below 2^51.
static double product_error(double a, double b, double *out_high) {
  const double split = 134217729.0;  // 2^27 + 1
  double high = a * b;
  double a_scaled = split * a;
  double a_high = a_scaled - (a_scaled - a);
  double a_low = a - a_high;
  double b_scaled = split * b;
  double b_high = b_scaled - (b_scaled - b);
  double b_low = b - b_high;
  *out_high = high;
  return a_low * b_low -
         (((high - a_high * b_high) - a_low * b_high) - a_high * b_low);
}

size_t bufio_text_fixed(char *text, double value, unsigned decimals) {
  decimals = decimals < BUFIO_TEXT_FIXED_DECIMALS_MAX
                 ? decimals
                 : BUFIO_TEXT_FIXED_DECIMALS_MAX;
  size_t len = 0;
  if (put_special(text, &value, &len)) {
    return len;
  }
  double power = (double)powers_of_10[decimals];
  // Tiny values would lose the error's low bits to underflow.
  if (value * power < FAST_INTEGER_MAX && (value >= 1e-200 || value == 0)) {
    double high;
    double low = product_error(value, power, &high);
    uint64_t digits = (uint64_t)high;
    double fraction = high - (double)digits;
    bool is_above = fraction > 0.5 || (fraction == 0.5 && low > 0);
    bool is_tie = fraction == 0.5 && low == 0;
    digits += is_above || (is_tie && digits % 2 == 1);
    return len + put_decimal(text + len, digits, decimals);
  }
  char printed[BUFIO_TEXT_FIXED_BYTES + 16];
  snprintf(printed, sizeof(printed), "%.*f", (int)decimals, value);
  return len + copy_without_locale(text + len, printed);
}

// ---- into a writer ----

// Formats in place; in memory of our own where the buffer is too small.
#define PUT(writer, bytes, call)                              \
  do {                                                        \
    char own[bytes];                                          \
    char *text = (char *)bufio_writer_reserve(writer, bytes); \
    if (text != NULL) {                                       \
      return bufio_writer_commit(writer, call);               \
    }                                                         \
    text = own;                                               \
    return bufio_writer_write(writer, own, call);             \
  } while (0)

int bufio_writer_put_u64(bufio_writer_t *writer, uint64_t value) {
  PUT(writer, BUFIO_TEXT_U64_BYTES, bufio_text_u64(text, value));
}

int bufio_writer_put_i64(bufio_writer_t *writer, int64_t value) {
  PUT(writer, BUFIO_TEXT_I64_BYTES, bufio_text_i64(text, value));
}

int bufio_writer_put_hex(bufio_writer_t *writer, uint64_t value,
                         unsigned min_digits) {
  PUT(writer, BUFIO_TEXT_HEX_BYTES, bufio_text_hex(text, value, min_digits));
}

int bufio_writer_put_double(bufio_writer_t *writer, double value) {
  PUT(writer, BUFIO_TEXT_DOUBLE_BYTES, bufio_text_double(text, value));
}

int bufio_writer_put_fixed(bufio_writer_t *writer, double value,
                           unsigned decimals) {
  PUT(writer, BUFIO_TEXT_FIXED_BYTES, bufio_text_fixed(text, value, decimals));
}
