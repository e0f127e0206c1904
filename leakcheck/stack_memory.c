// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/stack_memory.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

// The smallest page there is.
#define PROBE_BYTES ((uintptr_t)4096)
// A frame larger than this is taken for damage: the stack ends there.
#define FRAME_BYTES_MAX ((uintptr_t)256 << 20)
// A stack may have grown by this much since it was last entered.
#define GROWTH_BYTES_MAX ((uintptr_t)1 << 20)

bool stack_memory_is_readable(uintptr_t address) {
  // The kernel reads the signal set before it looks at the first argument,
  // which is invalid, so nothing changes.
  long result = syscall(SYS_rt_sigprocmask, ~0, address & ~(PROBE_BYTES - 1),
                        NULL, sizeof(uint64_t));
  return result == 0 || errno != EFAULT;
}

// True when [page of sp, low) is readable: then `sp` is on the stack of which
// [low, ...) is known already.
static bool grew_down_to(uintptr_t sp, uintptr_t low) {
  if (low - sp > GROWTH_BYTES_MAX) {
    return false;
  }
  for (uintptr_t page = (sp & ~(PROBE_BYTES - 1)) + PROBE_BYTES; page < low;
       page += PROBE_BYTES) {
    if (!stack_memory_is_readable(page)) {
      return false;
    }
  }
  return true;
}

uintptr_t stack_memory_enter(stack_memory_t *memory, uintptr_t sp) {
  uintptr_t page = sp & ~(PROBE_BYTES - 1);
  for (size_t i = 0; i < STACK_MEMORY_NUM_STACKS; i++) {
    uintptr_t low = memory->stacks[i].low;
    uintptr_t high = memory->stacks[i].high;
    if (sp < high && (sp >= low || grew_down_to(sp, low))) {
      memory->stacks[i].low = sp < low ? page : low;
      return high;
    }
  }
  size_t slot = memory->next_stack++ % STACK_MEMORY_NUM_STACKS;
  memory->stacks[slot].low = page;
  memory->stacks[slot].high = page + PROBE_BYTES;
  return page + PROBE_BYTES;
}

bool stack_memory_extend(stack_memory_t *memory, uintptr_t *inout_high,
                         uintptr_t end) {
  uintptr_t old_high = *inout_high;
  if (end >= STACK_MEMORY_ADDRESS_MAX || end - old_high > FRAME_BYTES_MAX) {
    return false;
  }
  while (*inout_high < end) {
    if (!stack_memory_is_readable(*inout_high)) {
      return false;
    }
    *inout_high += PROBE_BYTES;
  }
  for (size_t i = 0; i < STACK_MEMORY_NUM_STACKS; i++) {
    if (memory->stacks[i].high == old_high) {
      memory->stacks[i].high = *inout_high;
    }
  }
  return true;
}
