// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A shared object that allocates when it is loaded, when it is used, in a
// thread-local variable, and when it is unloaded.

#include <stdlib.h>
#include <string.h>

void *malloc_test_plugin_make(size_t size_bytes);

static char *constructed;
static _Thread_local void *last_made[100];

__attribute__((constructor)) static void plugin_loaded(void) {
  constructed = malloc(5000);
  if (constructed != NULL) {
    memset(constructed, 'p', 5000);
  }
}

__attribute__((destructor)) static void plugin_unloaded(void) {
  free(constructed);
  free(malloc(100));
}

__attribute__((visibility("default"))) void *malloc_test_plugin_make(
    size_t size_bytes) {
  last_made[0] = calloc(1, size_bytes);
  return last_made[0];
}
