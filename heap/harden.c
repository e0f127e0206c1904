// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What HEAP_HARDEN=... says, and the secrets. A word that nobody knows changes
// nothing, so that one that is misspelt does not switch anything off.

#include "heap/harden.h"

#include <stdlib.h>
#include <string.h>

#include "heap/random.h"

enum {
  LINE_CAPACITY = 512,
  SHOWN_MAX = 64,
};

heap_harden_t heap_harden;

static const struct {
  const char *word;
  uint32_t defences;
} words[] = {
    {"canary", HEAP_HARDEN_CANARY}, {"zero", HEAP_HARDEN_ZERO},
    {"reuse", HEAP_HARDEN_REUSE},   {"quarantine", HEAP_HARDEN_QUARANTINE},
    {"random", HEAP_HARDEN_RANDOM}, {"guard", HEAP_HARDEN_GUARD},
    {"empty", HEAP_HARDEN_EMPTY},   {"sized", HEAP_HARDEN_SIZED},
    {"limit", HEAP_HARDEN_LIMIT},
};

enum {
  WORD_COUNT = sizeof(words) / sizeof(words[0]),
};

static bool is_word(const char *text, size_t length, const char *word) {
  return strlen(word) == length && memcmp(text, word, length) == 0;
}

static bool read_seed(const char *text, size_t length, uint64_t *out_seed) {
  static const char prefix[] = "seed=";
  size_t at = sizeof(prefix) - 1;
  if (length <= at || memcmp(text, prefix, at) != 0) {
    return false;
  }
  uint64_t seed = 0;
  for (; at < length; ++at) {
    if (text[at] < '0' || text[at] > '9' ||
        __builtin_mul_overflow(seed, 10, &seed) ||
        __builtin_add_overflow(seed, (uint64_t)(text[at] - '0'), &seed)) {
      return false;
    }
  }
  *out_seed = seed;
  return true;
}

// Returns false for an unknown word.
static bool read_word(const char *text, size_t length,
                      heap_harden_choice_t *choice) {
  if (length == 0) {
    return true;
  }
  if (read_seed(text, length, &choice->seed)) {
    choice->has_seed = true;
    return true;
  }
  if (is_word(text, length, "all")) {
    choice->defences = HEAP_HARDEN_ALL;
    return true;
  }
  if (is_word(text, length, "none")) {
    choice->defences = 0;
    return true;
  }
  bool is_off = *text == '-';
  for (size_t i = 0; i < WORD_COUNT; ++i) {
    if (is_word(text + is_off, length - is_off, words[i].word)) {
      choice->defences = is_off ? choice->defences & ~words[i].defences
                                : choice->defences | words[i].defences;
      return true;
    }
  }
  return false;
}

heap_harden_choice_t heap_harden_parse(const char *value,
                                       const char **out_unknown) {
  heap_harden_choice_t choice = {.defences = HEAP_HARDEN_ALL};
  *out_unknown = NULL;
  while (value != NULL && *value != '\0') {
    size_t length = strcspn(value, ",");
    if (!read_word(value, length, &choice) && *out_unknown == NULL) {
      *out_unknown = value;
    }
    value += length;
    value += *value == ',';
  }
  return choice;
}

static void add_words(heap_text_t *text, const char *separator) {
  for (size_t i = 0; i < WORD_COUNT; ++i) {
    heap_text_add(text, i == 0 ? "" : separator);
    heap_text_add(text, words[i].word);
  }
}

void heap_harden_add_complaint(const char *unknown, heap_text_t *text) {
  size_t length = strcspn(unknown, ",");
  heap_text_add(text, "my_alloc heap: HEAP_HARDEN: ");
  for (size_t i = 0; i < length && i < SHOWN_MAX; ++i) {
    bool is_shown = unknown[i] >= ' ' && unknown[i] <= '~';
    char shown[] = {is_shown ? unknown[i] : '?', '\0'};
    heap_text_add(text, shown);
  }
  heap_text_add(text, length > SHOWN_MAX ? "..." : "");
  heap_text_add(text,
                " is ignored; it can be all, none, seed=NUMBER, and with or "
                "without a - before it ");
  add_words(text, ", ");
  heap_text_add(text, "\n");
}

void heap_harden_complain(void) {
  const char *unknown;
  heap_harden_parse(secure_getenv("HEAP_HARDEN"), &unknown);
  if (unknown != NULL) {
    char line[LINE_CAPACITY];
    heap_text_t text = {.buffer = line, .capacity = sizeof(line)};
    heap_harden_add_complaint(unknown, &text);
    heap_text_write(&text);
  }
}

void heap_harden_help(void) {
  char line[LINE_CAPACITY];
  heap_text_t text = {.buffer = line, .capacity = sizeof(line)};
  heap_text_add(&text, "HEAP_HARDEN=all|none|[-]");
  add_words(&text, "|[-]");
  heap_text_add(&text,
                "|seed=NUMBER,...  defences, from the left; - takes one "
                "away; a fixed seed is for tests\n");
  heap_text_write(&text);
}

static uint32_t derived(uint32_t defences) {
  const uint32_t looks = HEAP_HARDEN_ZERO | HEAP_HARDEN_REUSE;
  const uint32_t waits = HEAP_HARDEN_CANARY | HEAP_HARDEN_QUARANTINE;
  const uint32_t is_short = looks | waits | HEAP_HARDEN_RANDOM;
  return ((defences & looks) == looks ? HEAP_HARDEN_LOOKS : 0) |
         ((defences & waits) == waits ? HEAP_HARDEN_WAITS : 0) |
         ((defences & is_short) == is_short ? HEAP_HARDEN_SHORT : 0);
}

void heap_harden_start(void) {
  const char *unknown;
  heap_harden_choice_t choice =
      heap_harden_parse(secure_getenv("HEAP_HARDEN"), &unknown);
  if (choice.has_seed) {
    heap_random_fix(choice.seed);
  }
  heap_random_t random = {0};
  heap_harden.canary_secret = heap_random_next(&random);
  heap_harden.canary_factor = heap_random_next(&random) | 1;
  explicit_bzero(&random, sizeof(random));  // Its key makes both again.
  heap_harden.canary_bytes =
      (choice.defences & HEAP_HARDEN_CANARY) != 0 ? 8 : 0;
  heap_harden.defences = choice.defences | derived(choice.defences);
}
