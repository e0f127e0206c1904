// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A shared object for tests to load and unload.

#include <stdlib.h>

void *test_plugin_alloc(size_t size_bytes);

__attribute__((visibility("default"))) void *test_plugin_alloc(
    size_t size_bytes) {
  void *volatile block = malloc(size_bytes);
  return block;
}
