// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What differs between the two variants of the library, which are compiled from
// the same sources: HEAP_HARDENED is 1 in the hardened one (hardened.c).

#ifndef MY_ALLOC_HEAP_HARDEN_H_
#define MY_ALLOC_HEAP_HARDEN_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/text.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef HEAP_HARDENED
#define HEAP_HARDENED 0
#endif

// What the checks cost is measured with a third one, which has none of them: a
// free of a small block takes the caller's word that one starts there and is
// live, and cached blocks stay in state LIVE. For nothing else.
#ifdef HEAP_WITHOUT_CHECKS
#define HEAP_CHECKED 0
#else
#define HEAP_CHECKED 1
#endif

enum {
  // At both ends of each span and of each larger block; see guard.h.
  HEAP_GUARD_BYTES = HEAP_HARDENED ? 4096 : 0,
};

// The defences, each a bit: what HEAP_HARDEN=... switches.
enum {
  HEAP_HARDEN_CANARY = 1 << 0,      // Overflow and underflow, found at free.
  HEAP_HARDEN_ZERO = 1 << 1,        // What is freed is zeroed.
  HEAP_HARDEN_REUSE = 1 << 2,       // And must be zero when it is reused.
  HEAP_HARDEN_QUARANTINE = 1 << 3,  // What is freed is not reused for a while.
  HEAP_HARDEN_RANDOM = 1 << 4,      // Placement and order of reuse.
  HEAP_HARDEN_GUARD = 1 << 5,       // Pages that fault around spans, blocks.
  HEAP_HARDEN_EMPTY = 1 << 6,       // Blocks of size 0 fault.
  HEAP_HARDEN_SIZED = 1 << 7,       // Sized frees must name the size exactly.
  HEAP_HARDEN_LIMIT = 1 << 8,       // No block above HEAP_ABSURD_BYTES.
  HEAP_HARDEN_ALL = (1 << 9) - 1,
};

// What follows from them, so that the usual paths test one bit.
enum {
  HEAP_HARDEN_LOOKS = 1 << 9,   // Memory is zeroed, and looked at: is_zero.
  HEAP_HARDEN_WAITS = 1 << 10,  // Free's usual path: canary, quarantine.
  HEAP_HARDEN_SHORT = 1 << 11,  // The paths of short blocks: all on their way.
};

// What the environment asks for.
typedef struct heap_harden_choice {
  uint32_t defences;
  bool has_seed;
  uint64_t seed;  // Of all randomness, for tests.
} heap_harden_choice_t;

// Reads a list such as `all,-quarantine`, from the left, starting with all
// defences on. A word that is unknown changes nothing; its first one is in
// `out_unknown` (not terminated), otherwise NULL. `value` may be NULL.
heap_harden_choice_t heap_harden_parse(const char *value,
                                       const char **out_unknown);

// Adds a line that names the unknown word, and what it could be.
void heap_harden_add_complaint(const char *unknown, heap_text_t *text);

// As heap_option_complain and heap_option_help, for HEAP_HARDEN.
void heap_harden_complain(void);
void heap_harden_help(void);

// In force. Constant once the first block was handed out.
typedef struct heap_harden {
  uint32_t defences;
  uint32_t canary_bytes;  // Of each block, for its canary.
  uint64_t canary_secret;
  uint64_t canary_factor;  // Odd.
} heap_harden_t;
extern heap_harden_t heap_harden __attribute__((visibility("hidden")));

static inline bool heap_harden_has(uint32_t defences) {
  return (heap_harden.defences & defences) == defences;
}

// Reads the environment and draws the secrets, once. Central lock held.
void heap_harden_start(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_HARDEN_H_
