// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The C library's functions that tell of the heap or tune it, and what the
// environment asks a program to print. Not on the way of any allocation, so
// stdio's FILE may appear here, where the man page demands it.

#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "heap/heap.h"
#include "heap/option.h"
#include "heap/text.h"

#define EXPORT __attribute__((visibility("default")))

enum {
  REPORT_BYTES = 16 << 10,  // 72 classes of up to 100 bytes and the totals.
};

static void print_stats(heap_stats_format_t format) {
  heap_stats_t stats;
  char buffer[REPORT_BYTES];
  heap_stats_get(&stats);
  heap_text_t text = {.buffer = buffer, .capacity = sizeof(buffer) - 1};
  text.length = heap_stats_format(&stats, format, buffer, sizeof(buffer));
  heap_text_write(&text);
}

EXPORT void malloc_stats(void) {
  print_stats(HEAP_STATS_TEXT);
}

// `arena` .. as the man page names them, as far as they have a meaning here.
EXPORT struct mallinfo2 mallinfo2(void) {
  heap_stats_t stats;
  heap_stats_get(&stats);
  size_t arena_bytes = stats.mapped_bytes - stats.huge_bytes;
  size_t free_bytes = stats.free_run_bytes + stats.span_free_bytes;
  size_t num_free = 0;
  for (size_t i = 0; i < HEAP_STATS_CLASS_COUNT; ++i) {
    num_free += stats.classes[i].num_free;
  }
  return (struct mallinfo2){
      .arena = arena_bytes,
      .ordblks = num_free,
      .hblks = stats.num_huge,
      .hblkhd = stats.huge_bytes,
      .uordblks = arena_bytes - free_bytes,
      .fordblks = free_bytes,
      .keepcost = stats.idle_bytes,
  };
}

static int saturate(size_t value) {
  return value > INT32_MAX ? INT32_MAX : (int)value;
}

EXPORT struct mallinfo mallinfo(void) {
  struct mallinfo2 info = mallinfo2();
  return (struct mallinfo){
      .arena = saturate(info.arena),
      .ordblks = saturate(info.ordblks),
      .hblks = saturate(info.hblks),
      .hblkhd = saturate(info.hblkhd),
      .uordblks = saturate(info.uordblks),
      .fordblks = saturate(info.fordblks),
      .keepcost = saturate(info.keepcost),
  };
}

// None of glibc's parameters has a counterpart: 0 says so.
EXPORT int mallopt(int parameter, int value) {
  (void)parameter;
  (void)value;
  return 0;
}

static void add_element(heap_text_t *text, const char *type, size_t value) {
  heap_text_add(text, "<system type=\"");
  heap_text_add(text, type);
  heap_text_add(text, "\" size=\"");
  heap_text_add_decimal(text, value);
  heap_text_add(text, "\"/>\n");
}

EXPORT int malloc_info(int options, FILE *stream) {
  if (options != 0) {
    errno = EINVAL;
    return -1;
  }
  heap_stats_t stats;
  char buffer[REPORT_BYTES];
  heap_stats_get(&stats);
  heap_text_t text = {.buffer = buffer, .capacity = sizeof(buffer)};
  heap_text_add(&text, "<malloc version=\"my_alloc-1\">\n<sizes>\n");
  for (size_t i = 0; i < HEAP_STATS_CLASS_COUNT; ++i) {
    if (stats.classes[i].num_spans > 0) {
      heap_text_add(&text, "<size to=\"");
      heap_text_add_decimal(&text, stats.classes[i].block_bytes);
      heap_text_add(&text, "\" live=\"");
      heap_text_add_decimal(&text, stats.classes[i].num_live);
      heap_text_add(&text, "\" free=\"");
      heap_text_add_decimal(&text, stats.classes[i].num_free);
      heap_text_add(&text, "\"/>\n");
    }
  }
  heap_text_add(&text, "</sizes>\n");
  add_element(&text, "current", stats.mapped_bytes);
  add_element(&text, "live", stats.live_bytes);
  add_element(&text, "idle", stats.idle_bytes);
  heap_text_add(&text, "</malloc>\n");
  return fwrite(text.buffer, 1, text.length, stream) == text.length ? 0 : -1;
}

// A preloaded object is initialised before the C library (`-z initfirst`),
// which knows nothing of the environment then; the loader passes it.
__attribute__((constructor)) static void read_options(int argc, char **argv,
                                                      char **environment) {
  (void)argc;
  (void)argv;
  if (environ == NULL) {
    environ = environment;
  }
  heap_option_complain();
  if (heap_option_get(HEAP_OPTION_HELP) == HEAP_HELP_YES) {
    heap_option_help();
  }
}

__attribute__((destructor)) static void print_stats_at_exit(void) {
  heap_choice_t choice = heap_option_get(HEAP_OPTION_STATS);
  if (choice != HEAP_STATS_NO) {
    print_stats(choice == HEAP_STATS_AS_JSON ? HEAP_STATS_JSON
                                             : HEAP_STATS_TEXT);
  }
}
