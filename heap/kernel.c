// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/kernel.h"

#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

static void *kernel_move_break(intptr_t delta_bytes) {
  void *old_break = sbrk(delta_bytes);
  return old_break == (void *)-1 ? NULL : old_break;
}

static void *kernel_map(size_t size_bytes, bool reserve_only) {
  // A reservation is not charged against the commit limit; it is charged, page
  // by page, when `kernel_commit` makes it writable.
  int protection = reserve_only ? PROT_NONE : PROT_READ | PROT_WRITE;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | (reserve_only ? MAP_NORESERVE : 0);
  void *ptr = mmap(NULL, size_bytes, protection, flags, -1, 0);
  return ptr == MAP_FAILED ? NULL : ptr;
}

static bool kernel_commit(void *ptr, size_t size_bytes) {
  return mprotect(ptr, size_bytes, PROT_READ | PROT_WRITE) == 0;
}

static bool kernel_resize(void *ptr, size_t old_bytes, size_t new_bytes) {
  return mremap(ptr, old_bytes, new_bytes, 0) != MAP_FAILED;
}

static bool kernel_move(void *ptr, size_t old_bytes, void *target,
                        size_t new_bytes) {
  return mremap(ptr, old_bytes, new_bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                target) != MAP_FAILED;
}

static size_t kernel_page_bytes(void) {
  return (size_t)getauxval(AT_PAGESZ);
}

static bool kernel_discard(void *ptr, size_t size_bytes) {
  return madvise(ptr, size_bytes, MADV_DONTNEED) == 0;
}

static bool kernel_unmap(void *ptr, size_t size_bytes) {
  return munmap(ptr, size_bytes) == 0;
}

// Not in the headers of glibc 2.36.
enum {
  ADVICE_GUARD_INSTALL = 102,
  ADVICE_GUARD_REMOVE = 103,
};

static bool kernel_guard(void *ptr, size_t size_bytes, bool on) {
  return madvise(ptr, size_bytes,
                 on ? ADVICE_GUARD_INSTALL : ADVICE_GUARD_REMOVE) == 0;
}

static bool kernel_forbid(void *ptr, size_t size_bytes) {
  return mprotect(ptr, size_bytes, PROT_NONE) == 0;
}

const heap_kernel_t heap_kernel_default = {
    .move_break = kernel_move_break,
    .map = kernel_map,
    .commit = kernel_commit,
    .resize = kernel_resize,
    .move = kernel_move,
    .page_bytes = kernel_page_bytes,
    .discard = kernel_discard,
    .unmap = kernel_unmap,
    .guard = kernel_guard,
    .forbid = kernel_forbid,
};

const heap_kernel_t *heap_kernel = &heap_kernel_default;
