// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One line is built in a buffer on the stack and written by one write(2), so
// that lines of several threads or processes do not mix.

#include "heap/fatal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "heap/harden.h"
#include "heap/hooks.h"
#include "heap/option.h"
#include "heap/text.h"

enum {
  LINE_CAPACITY = 256
};

static uint64_t misuse_count;  // Atomic, relaxed: a counter only.

_Noreturn void heap_die(const char *message) {
  heap_text_write_bytes(message, strlen(message));
  abort();
}

static void add_cause(heap_text_t *text, heap_misuse_t misuse) {
  switch (misuse) {
    case HEAP_MISUSE_FOREIGN:
      heap_text_add(text, "invalid pointer (no block of this heap)");
      break;
    case HEAP_MISUSE_INTERIOR:
      heap_text_add(text, "invalid pointer (not the start of its block)");
      break;
    case HEAP_MISUSE_FREED:
      heap_text_add(text, "double free or freed pointer");
      break;
    case HEAP_MISUSE_SIZE:
      heap_text_add(text, "size differs from that of the block");
      break;
    case HEAP_MISUSE_OVERFLOW:
      heap_text_add(text, "block was written to past its end");
      break;
    case HEAP_MISUSE_UNDERFLOW:
      heap_text_add(text, "memory was written to before its start");
      break;
    case HEAP_MISUSE_WRITTEN:
      heap_text_add(text,
                    HEAP_HARDENED
                        ? "block was written to after it was freed"
                        : "free block was written to, it or one beside it");
      break;
  }
}

void heap_report_misuse(heap_misuse_t misuse, const heap_call_t *call,
                        const void *ptr, uintptr_t block, size_t block_bytes) {
  int saved_errno = errno;
  char line[LINE_CAPACITY];
  heap_hook_misuse(misuse, ptr);
  heap_text_t text = {.buffer = line, .capacity = sizeof(line)};
  heap_text_add(&text, "heap: ");
  heap_text_add(&text, call->function);
  heap_text_add(&text, ": ");
  add_cause(&text, misuse);
  heap_text_add(&text, ": ");
  heap_text_add_hex(&text, (uintptr_t)ptr);
  if (block_bytes != 0) {
    heap_text_add(&text, ", block ");
    heap_text_add_hex(&text, block);
    heap_text_add(&text, " of ");
    heap_text_add_decimal(&text, block_bytes);
    heap_text_add(&text, " bytes");
  }
  heap_text_add(&text, ", thread ");
  heap_text_add_decimal(&text, (uint64_t)syscall(SYS_gettid));
  heap_text_add(&text, ", called from ");
  heap_text_add_hex(&text, (uintptr_t)call->caller);
  heap_text_add(&text, "\n");
  heap_text_write(&text);
  if (heap_option_get(HEAP_OPTION_ON_ERROR) != HEAP_ON_ERROR_REPORT) {
    abort();
  }
  __atomic_fetch_add(&misuse_count, 1, __ATOMIC_RELAXED);
  errno = saved_errno;
}

uint64_t heap_misuse_count(void) {
  return __atomic_load_n(&misuse_count, __ATOMIC_RELAXED);
}
