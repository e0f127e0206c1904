// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where a cache's memory comes from: the kernel, the caller's two functions,
// or the caller's buffer.
//
// The kernel's memory for objects is a range of addresses (range.c); only what
// does not fit there comes as from the caller's functions: in slabs of 64 KiB
// and more, which go back one by one. Metadata is small and of all sizes. From
// the caller's functions it is asked for as it is. From the kernel it comes in
// powers of two from 64 bytes to 512 bytes, carved from blocks that all caches
// share and that are kept, and above that in mappings of its own, which go
// back. In a buffer nothing goes back.
//
// Lock order: `metadata_lock` is the last one.

#include "slab/slab_internal.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>

enum {
  PAGE_BYTES = 4096,
  CLASS_MIN_SHIFT = 6,
  CLASS_MAX_SHIFT = 9,
  CLASS_COUNT = CLASS_MAX_SHIFT - CLASS_MIN_SHIFT + 1,
  BLOCK_BYTES = 1 << 16,
};

typedef struct chunk {
  struct chunk *next;
} chunk_t;

static pthread_mutex_t metadata_lock = PTHREAD_MUTEX_INITIALIZER;
// Guarded by metadata_lock.
static chunk_t *free_chunks[CLASS_COUNT];
static unsigned char *block_next;
static unsigned char *block_end;

static void *kernel_map(size_t size_bytes) {
  void *ptr = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return ptr == MAP_FAILED ? NULL : ptr;
}

static void kernel_unmap(void *ptr, size_t size_bytes) {
  // Fails only where it would split a mapping and there are too many already:
  // then the memory at least goes back.
  if (munmap(ptr, size_bytes) != 0) {
    madvise(ptr, size_bytes, MADV_DONTNEED);
  }
}

static void *kernel_reserve(size_t size_bytes) {
  void *ptr = mmap(NULL, size_bytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return ptr == MAP_FAILED ? NULL : ptr;
}

static bool kernel_allow_reads(void *ptr, size_t size_bytes) {
  return mprotect(ptr, size_bytes, PROT_READ) == 0;
}

static bool kernel_allow_writes(void *ptr, size_t size_bytes) {
  return mprotect(ptr, size_bytes, PROT_READ | PROT_WRITE) == 0;
}

static void kernel_discard(void *ptr, size_t size_bytes) {
  // Fails where the memory is locked: it stays then.
  madvise(ptr, size_bytes, MADV_DONTNEED);
}

static void kernel_advise_huge(void *ptr, size_t size_bytes) {
  // A kernel without huge pages says EINVAL; small ones do as well.
  madvise(ptr, size_bytes, MADV_HUGEPAGE);
}

const slab_kernel_t slab_kernel_default = {
    .map = kernel_map,
    .unmap = kernel_unmap,
    .reserve = kernel_reserve,
    .allow_reads = kernel_allow_reads,
    .allow_writes = kernel_allow_writes,
    .discard = kernel_discard,
    .advise_huge = kernel_advise_huge,
};
const slab_kernel_t *slab_kernel = &slab_kernel_default;

void slab_memory_lock(void) {
  pthread_mutex_lock(&metadata_lock);
}

void slab_memory_unlock(void) {
  pthread_mutex_unlock(&metadata_lock);
}

static void *map_aligned(size_t size_bytes, size_t align_bytes) {
  unsigned char *ptr = slab_kernel->map(size_bytes);
  if (ptr == NULL || ((uintptr_t)ptr & (align_bytes - 1)) == 0) {
    return ptr;
  }
  slab_kernel->unmap(ptr, size_bytes);
  // More, and the ends back.
  size_t mapped_bytes = size_bytes + align_bytes;
  ptr = slab_kernel->map(mapped_bytes);
  if (ptr == NULL) {
    return NULL;
  }
  size_t head_bytes = -(uintptr_t)ptr & (align_bytes - 1);
  if (head_bytes != 0) {
    slab_kernel->unmap(ptr, head_bytes);
  }
  if (head_bytes != align_bytes) {
    slab_kernel->unmap(ptr + head_bytes + size_bytes, align_bytes - head_bytes);
  }
  return ptr + head_bytes;
}

static void *buffer_alloc(slab_buffer_t *buffer, size_t size_bytes,
                          size_t align_bytes) {
  size_t head_bytes = -(uintptr_t)buffer->next & (align_bytes - 1);
  size_t left_bytes = (size_t)(buffer->end - buffer->next);
  if (head_bytes > left_bytes || size_bytes > left_bytes - head_bytes) {
    return NULL;
  }
  unsigned char *ptr = buffer->next + head_bytes;
  buffer->next = ptr + size_bytes;
  return ptr;
}

void *slab_memory_alloc(slab_cache_t *cache, size_t size_bytes,
                        size_t align_bytes) {
  if (cache->has_buffer) {
    return buffer_alloc(&cache->buffer, size_bytes, align_bytes);
  }
  if (cache->has_source) {
    return cache->source.alloc(cache->source.context, size_bytes, align_bytes);
  }
  return map_aligned(size_bytes, align_bytes);
}

void slab_memory_free(slab_cache_t *cache, void *ptr, size_t size_bytes) {
  if (cache->has_buffer) {
    return;
  }
  if (cache->has_source) {
    cache->source.free(cache->source.context, ptr, size_bytes);
    return;
  }
  slab_kernel->unmap(ptr, size_bytes);
}

// Returns CLASS_COUNT where the size has a mapping of its own.
static size_t class_of(size_t size_bytes) {
  size_t size_class = 0;
  while (size_class < CLASS_COUNT &&
         size_bytes > (size_t)1 << (CLASS_MIN_SHIFT + size_class)) {
    ++size_class;
  }
  return size_class;
}

// Starts a new block; what is left of the old one becomes smallest chunks.
// Lock held.
static bool start_block(void) {
  for (; block_next != block_end; block_next += (size_t)1 << CLASS_MIN_SHIFT) {
    chunk_t *rest = (chunk_t *)(void *)block_next;
    rest->next = free_chunks[0];
    free_chunks[0] = rest;
  }
  unsigned char *block = slab_kernel->map(BLOCK_BYTES);
  if (block == NULL) {
    return false;
  }
  block_next = block;
  block_end = block + BLOCK_BYTES;
  return true;
}

// Lock held.
static void *carve(size_t chunk_bytes) {
  if ((size_t)(block_end - block_next) < chunk_bytes && !start_block()) {
    return NULL;
  }
  unsigned char *chunk = block_next;
  block_next += chunk_bytes;
  return chunk;
}

static void *small_alloc(size_t size_class) {
  size_t chunk_bytes = (size_t)1 << (CLASS_MIN_SHIFT + size_class);
  pthread_mutex_lock(&metadata_lock);
  chunk_t *chunk = free_chunks[size_class];
  if (chunk != NULL) {
    free_chunks[size_class] = chunk->next;
  } else {
    chunk = carve(chunk_bytes);
  }
  pthread_mutex_unlock(&metadata_lock);
  if (chunk != NULL) {
    memset(chunk, 0, chunk_bytes);
  }
  return chunk;
}

static void small_free(void *ptr, size_t size_class) {
  chunk_t *chunk = ptr;
  pthread_mutex_lock(&metadata_lock);
  chunk->next = free_chunks[size_class];
  free_chunks[size_class] = chunk;
  pthread_mutex_unlock(&metadata_lock);
}

void *slab_metadata_alloc(slab_cache_t *cache, size_t size_bytes) {
  void *ptr;
  if (cache->has_buffer || cache->has_source) {
    ptr = slab_memory_alloc(cache, size_bytes, 64);
    if ((uintptr_t)ptr % 64 != 0) {
      SLAB_DIE("the source's memory is not aligned as asked");
    }
    if (ptr != NULL) {
      memset(ptr, 0, size_bytes);
    }
  } else {
    size_t size_class = class_of(size_bytes);
    ptr = size_class < CLASS_COUNT
              ? small_alloc(size_class)
              : slab_kernel->map(slab_round_up(size_bytes, PAGE_BYTES));
  }
  if (ptr != NULL) {
    __atomic_fetch_add(&cache->metadata_bytes, size_bytes, __ATOMIC_RELAXED);
  }
  return ptr;
}

void slab_metadata_free(slab_cache_t *cache, void *ptr, size_t size_bytes) {
  if (ptr == NULL) {
    return;
  }
  __atomic_fetch_sub(&cache->metadata_bytes, size_bytes, __ATOMIC_RELAXED);
  if (cache->has_buffer || cache->has_source) {
    slab_memory_free(cache, ptr, size_bytes);
    return;
  }
  size_t size_class = class_of(size_bytes);
  if (size_class < CLASS_COUNT) {
    small_free(ptr, size_class);
  } else {
    slab_kernel->unmap(ptr, slab_round_up(size_bytes, PAGE_BYTES));
  }
}
