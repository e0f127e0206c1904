// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The section `memory` of slab_compare.

#ifndef MY_ALLOC_SLAB_COMPARE_MEMORY_H_
#define MY_ALLOC_SLAB_COMPARE_MEMORY_H_

namespace compare {

// Prints the resident memory for many objects, and of many caches used by many
// threads. In children, before there are threads.
void ReportMemory(bool is_quick);

}  // namespace compare

#endif  // MY_ALLOC_SLAB_COMPARE_MEMORY_H_
