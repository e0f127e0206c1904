// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program in C that has nothing but private_heap.h: every public function can
// be linked and called from C, and does what its comment says first.

#include "heap/private_heap.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// In all builds, unlike assert.
#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

static bool count_block(void *context, void *ptr, size_t usable_bytes) {
  CHECK(ptr != NULL && usable_bytes >= 16);
  ++*(size_t *)context;
  return true;
}

static void use(heap_t *heap) {
  heap_private_stats_t stats;
  size_t count = 0;
  char *text = heap_alloc_in(heap, 6);
  CHECK(text != NULL && heap_usable_size_in(heap, text) == 16);
  memcpy(text, "hello", 6);
  text = heap_realloc_in(heap, text, 5000);
  CHECK(text != NULL && strcmp(text, "hello") == 0);
  int *numbers = heap_calloc_in(heap, 100, sizeof(int));
  CHECK(numbers != NULL && numbers[0] == 0 && numbers[99] == 0);
  void *aligned = heap_aligned_alloc_in(heap, 4096, 100);
  CHECK(aligned != NULL && (uintptr_t)aligned % 4096 == 0);
  CHECK(heap_walk_in(heap, count_block, &count) && count == 3);
  CHECK(heap_check_in(heap) == NULL);
  heap_free_in(heap, numbers);
  heap_free_in(heap, NULL);
  heap_stats_get_in(heap, &stats);
  CHECK(stats.num_live == 2 && stats.peak_live_bytes >= 5000 + 400 + 100);
  heap_trim_in(heap);
  heap_reset(heap);
  heap_stats_get_in(heap, &stats);
  CHECK(stats.num_live == 0 && stats.live_bytes == 0);
}

int main(void) {
  for (int strategy = 0; strategy < HEAP_STRATEGY_COUNT; ++strategy) {
    heap_options_t options = {.strategy = (heap_strategy_t)strategy};
    heap_t *heap = heap_create(&options);
    CHECK(heap != NULL);
    use(heap);
    heap_destroy(heap);
  }
  heap_options_t wrong = {.granule_bytes = 17};
  CHECK(heap_create(&wrong) == NULL && errno == EINVAL);
  heap_destroy(NULL);
  return 0;
}
