// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One list of the figures, two ways to write it down.

#include <stdint.h>

#include "heap/heap.h"
#include "heap/text.h"

typedef struct figure {
  const char *name;
  size_t offset;  // In heap_stats_t.
  const char *meaning;
} figure_t;

#define FIGURE(field, meaning) \
  { #field, offsetof(heap_stats_t, field), meaning }

static const figure_t figures[] = {
    FIGURE(live_bytes, "in live blocks"),
    FIGURE(num_live, "live blocks"),
    FIGURE(mapped_bytes, "from the kernel"),
    FIGURE(dirty_bytes, "of these used, at most so much is resident"),
    FIGURE(idle_bytes, "of these used but in no block and no span"),
    FIGURE(free_run_bytes, "mapped but in no block and no span"),
    FIGURE(largest_free_run_bytes, "the longest piece of these"),
    FIGURE(span_free_bytes, "in free small blocks"),
    FIGURE(huge_bytes, "in blocks with mappings of their own"),
    FIGURE(num_huge, "blocks with mappings of their own"),
    FIGURE(metadata_bytes, "addresses of the heap's own tables"),
    FIGURE(num_spans, "spans of small blocks"),
    FIGURE(num_refills, "small allocations that found nothing cached"),
    FIGURE(sampled_request_bytes, "asked for by these"),
    FIGURE(sampled_block_bytes, "in the blocks that they got"),
    FIGURE(num_kernel_calls, "kernel calls for memory"),
    FIGURE(num_misuses, "misuses reported"),
};

enum {
  FIGURE_COUNT = sizeof(figures) / sizeof(figures[0]),
  COLUMN_DIGITS = 14,
};

static size_t value_of(const heap_stats_t *stats, const figure_t *figure) {
  const unsigned char *bytes = (const unsigned char *)stats;
  return *(const size_t *)(const void *)(bytes + figure->offset);
}

// Right-aligned in a column.
static void add_column(heap_text_t *text, size_t value) {
  size_t digits = 1;
  for (size_t rest = value; rest >= 10; rest /= 10) {
    ++digits;
  }
  for (; digits < COLUMN_DIGITS; ++digits) {
    heap_text_add(text, " ");
  }
  heap_text_add_decimal(text, value);
}

static void add_text(heap_text_t *text, const heap_stats_t *stats) {
  for (size_t i = 0; i < FIGURE_COUNT; ++i) {
    add_column(text, value_of(stats, &figures[i]));
    heap_text_add(text, "  ");
    heap_text_add(text, figures[i].name);
    heap_text_add(text, ": ");
    heap_text_add(text, figures[i].meaning);
    heap_text_add(text, "\n");
  }
  heap_text_add(text,
                "   block_bytes         spans          live          free\n");
  for (size_t i = 0; i < HEAP_STATS_CLASS_COUNT; ++i) {
    const heap_class_stats_t *size_class = &stats->classes[i];
    if (size_class->num_spans > 0) {
      add_column(text, size_class->block_bytes);
      add_column(text, size_class->num_spans);
      add_column(text, size_class->num_live);
      add_column(text, size_class->num_free);
      heap_text_add(text, "\n");
    }
  }
}

static void add_member(heap_text_t *text, const char *name, size_t value) {
  heap_text_add(text, "\"");
  heap_text_add(text, name);
  heap_text_add(text, "\":");
  heap_text_add_decimal(text, value);
}

static void add_json(heap_text_t *text, const heap_stats_t *stats) {
  heap_text_add(text, "{");
  for (size_t i = 0; i < FIGURE_COUNT; ++i) {
    add_member(text, figures[i].name, value_of(stats, &figures[i]));
    heap_text_add(text, ",");
  }
  heap_text_add(text, "\"classes\":[");
  const char *separator = "";
  for (size_t i = 0; i < HEAP_STATS_CLASS_COUNT; ++i) {
    const heap_class_stats_t *size_class = &stats->classes[i];
    if (size_class->num_spans > 0) {
      heap_text_add(text, separator);
      heap_text_add(text, "{");
      add_member(text, "block_bytes", size_class->block_bytes);
      heap_text_add(text, ",");
      add_member(text, "num_spans", size_class->num_spans);
      heap_text_add(text, ",");
      add_member(text, "num_live", size_class->num_live);
      heap_text_add(text, ",");
      add_member(text, "num_free", size_class->num_free);
      heap_text_add(text, "}");
      separator = ",";
    }
  }
  heap_text_add(text, "]}\n");
}

size_t heap_stats_format(const heap_stats_t *stats, heap_stats_format_t format,
                         char *buffer, size_t capacity_bytes) {
  heap_text_t text = {
      .buffer = buffer,
      .capacity = capacity_bytes > 0 ? capacity_bytes - 1 : 0,
  };
  switch (format) {
    case HEAP_STATS_TEXT:
      add_text(&text, stats);
      break;
    case HEAP_STATS_JSON:
      add_json(&text, stats);
      break;
  }
  if (capacity_bytes > 0) {
    buffer[text.length < text.capacity ? text.length : text.capacity] = '\0';
  }
  return text.length;
}
