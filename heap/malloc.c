// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The C library's allocation functions on the process heap, to the letter of
// their man pages. Linking or preloading this object replaces all of them.
// libstdc++'s operators new, which throw, end in malloc and aligned_alloc; the
// operators delete are in malloc_delete.c.
//
// glibc's own name for the aligned entry used by its start-up code needs no
// replacement: programs linked to this object allocate nothing through it.

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include "heap/fast_path.h"
#include "heap/heap.h"

#define EXPORT __attribute__((visibility("default")))

// Declared here, not by <stdlib.h>, whose attributes and exception
// specifications differ between libc versions.
EXPORT void *malloc(size_t size);
EXPORT void free(void *ptr);
EXPORT void *calloc(size_t count, size_t size);
EXPORT void *realloc(void *ptr, size_t size);
EXPORT void *reallocarray(void *ptr, size_t count, size_t size);
EXPORT void *aligned_alloc(size_t alignment, size_t size);
EXPORT void *memalign(size_t alignment, size_t size);
EXPORT int posix_memalign(void **out_ptr, size_t alignment, size_t size);
EXPORT void *valloc(size_t size);
EXPORT void *pvalloc(size_t size);
EXPORT size_t malloc_usable_size(void *ptr);
EXPORT int malloc_trim(size_t pad);
EXPORT void cfree(void *ptr);
EXPORT void free_sized(void *ptr, size_t size);
EXPORT void free_aligned_sized(void *ptr, size_t alignment, size_t size);

void *malloc(size_t size) {
  return heap_alloc_fast(size);
}

void free(void *ptr) {
  heap_free_fast(ptr);
}

// A name from before C89 that old binaries still import.
void cfree(void *ptr) {
  heap_free_fast(ptr);
}

void *calloc(size_t count, size_t size) {
  return heap_calloc(count, size);
}

// glibc: size 0 frees and returns NULL.
void *realloc(void *ptr, size_t size) {
  if (ptr != NULL && size == 0) {
    heap_free_fast(ptr);
    return NULL;
  }
  return heap_realloc(ptr, size);
}

void *reallocarray(void *ptr, size_t count, size_t size) {
  size_t total;
  if (__builtin_mul_overflow(count, size, &total)) {
    errno = ENOMEM;
    return NULL;
  }
  return realloc(ptr, total);
}

void *aligned_alloc(size_t alignment, size_t size) {
  return heap_aligned_alloc(alignment, size);
}

// As glibc's: an alignment that is no power of two is rounded up to one.
void *memalign(size_t alignment, size_t size) {
  if (alignment > PTRDIFF_MAX) {
    errno = EINVAL;
    return NULL;
  }
  size_t power = HEAP_MIN_ALIGN_BYTES;
  while (power < alignment) {
    power *= 2;
  }
  return heap_aligned_alloc(power, size);
}

int posix_memalign(void **out_ptr, size_t alignment, size_t size) {
  if (alignment % sizeof(void *) != 0 || alignment == 0 ||
      (alignment & (alignment - 1)) != 0) {
    return EINVAL;
  }
  int saved_errno = errno;
  void *ptr = heap_aligned_alloc(alignment, size);
  errno = saved_errno;
  if (ptr == NULL) {
    return ENOMEM;
  }
  *out_ptr = ptr;
  return 0;
}

void *valloc(size_t size) {
  return heap_aligned_alloc((size_t)sysconf(_SC_PAGESIZE), size);
}

void *pvalloc(size_t size) {
  size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
  size_t rounded;
  if (__builtin_add_overflow(size, page_bytes - 1, &rounded)) {
    errno = ENOMEM;
    return NULL;
  }
  return heap_aligned_alloc(page_bytes, rounded & ~(page_bytes - 1));
}

size_t malloc_usable_size(void *ptr) {
  return heap_usable_size(ptr);
}

// C23.
void free_sized(void *ptr, size_t size) {
  heap_free_sized_fast(ptr, 0, size, true);
}

void free_aligned_sized(void *ptr, size_t alignment, size_t size) {
  heap_free_sized_fast(ptr, alignment, size, true);
}

int malloc_trim(size_t pad) {
  return heap_trim(pad) > 0;
}
