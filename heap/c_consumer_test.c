// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program in C that has nothing but heap.h: every public function can be
// declared, linked and called from C, and does what its comment says first.
// What each does beyond that is in heap_test.cc and its neighbours.

#include "heap/heap.h"

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

static size_t num_allocs;
static size_t num_frees;
static size_t num_resizes;
static size_t mapped_bytes;

static void on_alloc(void *ptr, size_t size_bytes, size_t usable_bytes) {
  num_allocs += ptr != NULL && size_bytes <= usable_bytes;
}

static void on_free(void *ptr) {
  num_frees += ptr != NULL;
}

static void on_resize(void *ptr, size_t size_bytes, size_t usable_bytes) {
  num_resizes += ptr != NULL && size_bytes <= usable_bytes;
}

static void on_map(void *ptr, size_t size_bytes) {
  mapped_bytes += ptr != NULL ? size_bytes : 0;
}

static void on_unmap(void *ptr, size_t size_bytes) {
  mapped_bytes -= ptr != NULL ? size_bytes : 0;
}

static void on_misuse(heap_misuse_t misuse, const void *ptr) {
  (void)ptr;
  fprintf(stderr, "misuse %d\n", (int)misuse);
  exit(1);
}

const heap_hooks_t heap_initial_hooks = {
    .on_alloc = on_alloc,
    .on_free = on_free,
    .on_resize = on_resize,
    .on_map = on_map,
    .on_unmap = on_unmap,
    .on_misuse = on_misuse,
};

static void use_blocks(void) {
  char *text = heap_alloc(6);
  CHECK(text != NULL && (uintptr_t)text % HEAP_MIN_ALIGN_BYTES == 0);
  memcpy(text, "hello", 6);
  text = heap_realloc(text, 100000);
  CHECK(text != NULL && strcmp(text, "hello") == 0);
  CHECK(heap_usable_size(text) >= 100000);
  heap_free(text);

  unsigned char *zeros = heap_calloc(10, 100);
  CHECK(zeros != NULL && zeros[0] == 0 && zeros[999] == 0);
  heap_free_sized(zeros, 0, 1000);

  void *aligned = heap_aligned_alloc(4096, 100);
  CHECK(aligned != NULL && (uintptr_t)aligned % 4096 == 0);
  heap_free_sized(aligned, 4096, 100);

  heap_free(NULL);
  CHECK(heap_usable_size(NULL) == 0);
}

static void fail_as_documented(void) {
  volatile size_t too_many_bytes = SIZE_MAX;
  errno = 0;
  CHECK(heap_alloc(too_many_bytes) == NULL && errno == ENOMEM);
  errno = 0;
  CHECK(heap_calloc(too_many_bytes, 2) == NULL && errno == ENOMEM);
  volatile size_t no_alignment = 3;
  errno = 0;
  CHECK(heap_aligned_alloc(no_alignment, 1) == NULL && errno == EINVAL);
}

static void give_memory(void) {
  static unsigned char memory[1 << 18];
  CHECK(heap_add_memory(memory, sizeof(memory), true) >= 1 << 17);
  errno = 0;
  CHECK(heap_add_memory(memory, sizeof(memory), true) == 0 && errno == EINVAL);
}

static bool find(void *context, void *ptr, size_t usable_bytes) {
  // Returns false, which ends the walk, at the block that is looked for.
  return usable_bytes == 0 || ptr != *(void **)context;
}

static void look_inside(void) {
  void *block = heap_alloc(1000);
  CHECK(block != NULL);
  CHECK(!heap_walk(find, &block));
  CHECK(heap_check() == NULL);

  static heap_stats_t stats;
  heap_stats_get(&stats);
  CHECK(stats.num_live == 1);
  CHECK(stats.live_bytes == heap_usable_size(block));
  CHECK(stats.mapped_bytes == mapped_bytes);
  CHECK(stats.num_misuses == 0);

  char text[4096];
  CHECK(heap_stats_format(&stats, HEAP_STATS_TEXT, NULL, 0) > 0);
  CHECK(heap_stats_format(&stats, HEAP_STATS_JSON, text, sizeof(text)) > 0);
  CHECK(text[0] == '{');

  heap_free(block);
  (void)heap_trim(0);
  heap_stats_get(&stats);
  CHECK(stats.num_live == 0 && stats.mapped_bytes == mapped_bytes);
}

int main(void) {
  use_blocks();
  fail_as_documented();
  give_memory();
  look_inside();
  CHECK(num_allocs == num_frees);
  // A realloc is a resize in place, or a block and the end of another.
  CHECK(num_allocs + num_resizes >= 5);
  return 0;
}
