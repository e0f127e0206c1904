// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A shared object that fills a container of its caller's.

#include <list>

#include "slab/slab.hpp"

extern "C" __attribute__((visibility("default"))) void slab_test_fill(
    std::list<int, slab::Allocator<int>> *list) {
  for (int i = 0; i < 100; ++i) {
    list->push_back(i);
  }
}
