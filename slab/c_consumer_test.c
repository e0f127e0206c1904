// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A C program that includes the public headers only.

#include <stdio.h>
#include <string.h>

#include "slab/slab.h"
#include "slab/slab_inline.h"

typedef struct node {
  struct node *next;
  char text[24];
} node_t;

static int fail(const char *what) {
  fprintf(stderr, "c_consumer_test: %s\n", what);
  return 1;
}

int main(void) {
  slab_options_t options = {.name = "node", .object_bytes = sizeof(node_t)};
  slab_cache_t *cache = slab_cache_create(&options);
  if (cache == NULL) {
    return fail("slab_cache_create");
  }
  node_t *list = NULL;
  for (int i = 0; i < 1000; ++i) {
    node_t *node = i % 2 == 0 ? slab_alloc(cache) : slab_alloc_inline(cache);
    if (node == NULL) {
      return fail("slab_alloc");
    }
    node->next = list;
    snprintf(node->text, sizeof(node->text), "node %d", i);
    list = node;
  }
  if (strcmp(list->text, "node 999") != 0) {
    return fail("contents");
  }
  for (int i = 0; list != NULL; ++i) {
    node_t *next = list->next;
    if (i % 2 == 0) {
      slab_free(cache, list);
    } else {
      slab_free_inline(cache, list);
    }
    list = next;
  }
  return slab_cache_destroy(cache, 0) == 0 ? 0 : fail("slab_cache_destroy");
}
