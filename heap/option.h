// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The environment variables that the heap heeds, and what they may be set to.

#ifndef MY_ALLOC_HEAP_OPTION_H_
#define MY_ALLOC_HEAP_OPTION_H_

#include "heap/harden.h"
#include "heap/text.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum heap_option {
  HEAP_OPTION_SOURCE,
  HEAP_OPTION_ON_ERROR,
  HEAP_OPTION_STATS,
  HEAP_OPTION_HELP,
  HEAP_OPTION_COUNT,
} heap_option_t;

// What an option is set to; 0 is the default.
typedef enum heap_choice {
  // The hardened variant's default is the other one.
  HEAP_SOURCE_BRK = HEAP_HARDENED,
  HEAP_SOURCE_MMAP = !HEAP_HARDENED,

  HEAP_ON_ERROR_ABORT = 0,
  HEAP_ON_ERROR_REPORT = 1,

  HEAP_STATS_NO = 0,
  HEAP_STATS_AS_TEXT = 1,
  HEAP_STATS_AS_JSON = 2,

  HEAP_HELP_NO = 0,
  HEAP_HELP_YES = 1,

  HEAP_CHOICE_UNKNOWN = 3,
} heap_choice_t;

// Returns what `value` means; the default for NULL and the empty string.
heap_choice_t heap_option_parse(heap_option_t option, const char *value);

// Returns what the environment says, the default where that is unknown. Of a
// set-user-ID program the environment says nothing, nor before libc is set up.
heap_choice_t heap_option_get(heap_option_t option);

// Adds a line that tells which values `value`, an unknown one, should have been
// one of. Its unprintable bytes are shown as `?`; a long one is cut.
void heap_option_add_complaint(heap_option_t option, const char *value,
                               heap_text_t *text);

// Writes such a line to stderr for each variable with an unknown value.
void heap_option_complain(void);

// Lists all variables on stderr.
void heap_option_help(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_OPTION_H_
