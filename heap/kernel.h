// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The one place where the heap asks the kernel for memory: a table of the
// calls, so that tests can make each of them fail in turn.

#ifndef MY_ALLOC_HEAP_KERNEL_H_
#define MY_ALLOC_HEAP_KERNEL_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct heap_kernel {
  // Moves the break by `delta_bytes`; returns the old break, NULL on failure.
  void *(*move_break)(intptr_t delta_bytes);
  // Maps zeroed memory, or only reserves addresses; NULL on failure.
  void *(*map)(size_t size_bytes, bool reserve_only);
  // Makes reserved addresses usable; false on failure.
  bool (*commit)(void *ptr, size_t size_bytes);
  // Changes the length of a mapping in place; false: unchanged.
  bool (*resize)(void *ptr, size_t old_bytes, size_t new_bytes);
  // Moves a mapping onto the mapping of `new_bytes` at `target`, which is
  // replaced. False: it is where it was, but the addresses at `target` may have
  // been given up (Linux 6.18 does so), and must not be unmapped: somebody else
  // may have them.
  bool (*move)(void *ptr, size_t old_bytes, void *target, size_t new_bytes);
  // Returns the size of the kernel's pages.
  size_t (*page_bytes)(void);
  // Gives the memory of whole pages back but not the addresses, which read as
  // zero then; false on failure.
  bool (*discard)(void *ptr, size_t size_bytes);
  // Gives addresses back; false on failure.
  bool (*unmap)(void *ptr, size_t size_bytes);
  // Makes every access to whole pages a fault, or takes that away: they are
  // zero then. Without a mapping more, in Linux 6.13 and later; false where it
  // is not to be had.
  bool (*guard)(void *ptr, size_t size_bytes, bool on);
  // Takes the right to access whole pages away, until `commit`; their contents
  // stay. False on failure.
  bool (*forbid)(void *ptr, size_t size_bytes);
} heap_kernel_t;

// The calls as libc makes them.
extern const heap_kernel_t heap_kernel_default;

// What the heap calls. Written by single-threaded tests only.
extern const heap_kernel_t *heap_kernel;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_KERNEL_H_
