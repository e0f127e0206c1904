// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/option.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
  CHOICES_MAX = HEAP_CHOICE_UNKNOWN,
  LINE_CAPACITY = 256,
  SHOWN_MAX = 64,  // Bytes of a value that a complaint shows.
};

typedef struct option {
  const char *name;
  const char *choices[CHOICES_MAX];  // By heap_choice_t.
  const char *effect;
} option_t;

static const option_t options[HEAP_OPTION_COUNT] = {
    [HEAP_OPTION_SOURCE] =
        {.name = "HEAP_SOURCE",
         .choices = {[HEAP_SOURCE_BRK] = "brk", [HEAP_SOURCE_MMAP] = "mmap"},
         .effect = "where small and medium blocks come "
                   "from: the program break, or mapped "
                   "reservations"},
    [HEAP_OPTION_ON_ERROR] = {.name = "HEAP_ON_ERROR",
                              .choices = {"abort", "report"},
                              .effect = "after the report of a double or "
                                        "invalid free: abort, or go on"},
    [HEAP_OPTION_STATS] = {.name = "HEAP_STATS",
                           .choices = {"0", "1", "json"},
                           .effect = "1: print statistics to stderr at exit; "
                                     "json: as JSON"},
    [HEAP_OPTION_HELP] = {.name = "HEAP_HELP",
                          .choices = {"0", "1"},
                          .effect = "1: print this list to stderr at start"},
};

heap_choice_t heap_option_parse(heap_option_t option, const char *value) {
  if (value == NULL || *value == '\0') {
    return (heap_choice_t)0;
  }
  for (int i = 0; i < CHOICES_MAX; ++i) {
    const char *choice = options[option].choices[i];
    if (choice != NULL && strcmp(value, choice) == 0) {
      return (heap_choice_t)i;
    }
  }
  return HEAP_CHOICE_UNKNOWN;
}

heap_choice_t heap_option_get(heap_option_t option) {
  heap_choice_t choice =
      heap_option_parse(option, secure_getenv(options[option].name));
  return choice == HEAP_CHOICE_UNKNOWN ? (heap_choice_t)0 : choice;
}

static void add_choices(const option_t *option, const char *separator,
                        heap_text_t *text) {
  for (int i = 0; i < CHOICES_MAX && option->choices[i] != NULL; ++i) {
    heap_text_add(text, i == 0 ? "" : separator);
    heap_text_add(text, option->choices[i]);
  }
}

static void add_shown(const char *value, heap_text_t *text) {
  size_t length = strlen(value);
  for (size_t i = 0; i < length && i < SHOWN_MAX; ++i) {
    char shown[] = {value[i] >= ' ' && value[i] <= '~' ? value[i] : '?', '\0'};
    heap_text_add(text, shown);
  }
  if (length > SHOWN_MAX) {
    heap_text_add(text, "...");
  }
}

void heap_option_add_complaint(heap_option_t option, const char *value,
                               heap_text_t *text) {
  heap_text_add(text, "my_alloc heap: ");
  heap_text_add(text, options[option].name);
  heap_text_add(text, "=");
  add_shown(value, text);
  heap_text_add(text, " is ignored; it can be ");
  add_choices(&options[option], ", ", text);
  heap_text_add(text, "\n");
}

void heap_option_complain(void) {
  for (int i = 0; i < HEAP_OPTION_COUNT; ++i) {
    const char *value = secure_getenv(options[i].name);
    if (heap_option_parse((heap_option_t)i, value) == HEAP_CHOICE_UNKNOWN) {
      char line[LINE_CAPACITY];
      heap_text_t text = {.buffer = line, .capacity = sizeof(line)};
      heap_option_add_complaint((heap_option_t)i, value, &text);
      heap_text_write(&text);
    }
  }
#if HEAP_HARDENED
  heap_harden_complain();
#endif
}

void heap_option_help(void) {
  for (int i = 0; i < HEAP_OPTION_COUNT; ++i) {
    char line[LINE_CAPACITY];
    heap_text_t text = {.buffer = line, .capacity = sizeof(line)};
    heap_text_add(&text, options[i].name);
    heap_text_add(&text, "=");
    add_choices(&options[i], "|", &text);
    heap_text_add(&text, "  ");
    heap_text_add(&text, options[i].effect);
    heap_text_add(&text, "\n");
    heap_text_write(&text);
  }
#if HEAP_HARDENED
  heap_harden_help();
#endif
}
