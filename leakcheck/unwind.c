// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A frame is three registers: rsp, rbp and rbx at the call. One step out:
//
//     higher addresses
//   cfa ->  | caller's data   |  caller's rsp
//           | return address  |  cfa - 8
//           | saved rbp, rbx  |  where the rule says
//   rsp ->  | locals          |
//
// The rule (cfi.h) depends on the instruction address only, so it is looked up
// once and kept in a direct-mapped cache. An entry is two words, the rule and
// rule ^ address. Each is loaded and stored atomically but not both together;
// a mixture of two entries fails the test `words[0] ^ words[1] == address`, so
// threads may write the same entry at once without a lock. A step with a
// cached rule costs about ten instructions.
//
// Invariants of the walk:
//   1. `low <= rsp` and everything in [rsp, high) is readable. `high` grows by
//      probing page by page, and what was probed is remembered per thread, so
//      that in the long run there are no system calls.
//   2. rsp grows with every step (a signal frame may change stacks), and the
//      number of steps is bounded: no damaged chain holds us.

#include "leakcheck/unwind.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "leakcheck/cfi.h"

#define CACHE_BITS 16
#define CACHE_ENTRIES ((size_t)1 << CACHE_BITS)
#define PROBE_BYTES ((uintptr_t)4096)
// A frame larger than this is taken for damage: the stack ends there.
#define FRAME_BYTES_MAX ((uintptr_t)256 << 20)
// Frame pointers are a guess, so they are believed over short distances only.
#define GUESSED_FRAME_BYTES_MAX ((uintptr_t)1 << 20)
// A stack may have grown by this much since it was last walked.
#define GROWTH_BYTES_MAX ((uintptr_t)1 << 20)
// User space on x86-64 and AArch64 ends below this (four-level page tables).
#define ADDRESS_MAX ((uintptr_t)1 << 47)

struct unwind_cache {
  // Written and read by any thread; relaxed, as each pair checks itself.
  struct {
    _Atomic uint64_t mixed;  // rule ^ address
    _Atomic uint64_t rule;
  } entries[CACHE_ENTRIES];
};

typedef struct frame {
  uintptr_t ip;
  uintptr_t sp;
  uintptr_t bp;
  uintptr_t bx;
  bool ip_is_exact;  // Not a return address: interrupted by a signal.
} frame_t;

typedef struct walk {
  unwind_cache_t *cache;
  unwind_thread_t *thread;
  uintptr_t high;  // Readable up to here.
} walk_t;

size_t unwind_cache_bytes(void) {
  return sizeof(unwind_cache_t);
}

static bool page_is_readable(uintptr_t address) {
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
    if (!page_is_readable(page)) {
      return false;
    }
  }
  return true;
}

// Begins the walk on the stack that holds `sp`, which is readable.
static void enter_stack(walk_t *walk, uintptr_t sp) {
  unwind_thread_t *thread = walk->thread;
  uintptr_t page = sp & ~(PROBE_BYTES - 1);
  for (size_t i = 0; i < UNWIND_NUM_STACKS; i++) {
    uintptr_t low = thread->stacks[i].low;
    uintptr_t high = thread->stacks[i].high;
    if (sp < high && (sp >= low || grew_down_to(sp, low))) {
      thread->stacks[i].low = sp < low ? page : low;
      walk->high = high;
      return;
    }
  }
  size_t slot = thread->next_stack++ % UNWIND_NUM_STACKS;
  thread->stacks[slot].low = page;
  thread->stacks[slot].high = page + PROBE_BYTES;
  walk->high = page + PROBE_BYTES;
}

// Makes [..., end) readable as far as the walk is concerned; false when it is
// not. Out of line: the walk's loop only compares.
static __attribute__((noinline)) bool extend_stack(walk_t *walk,
                                                   uintptr_t end) {
  if (end >= ADDRESS_MAX || end - walk->high > FRAME_BYTES_MAX) {
    return false;
  }
  uintptr_t old_high = walk->high;
  while (walk->high < end) {
    if (!page_is_readable(walk->high)) {
      return false;
    }
    walk->high += PROBE_BYTES;
  }
  for (size_t i = 0; i < UNWIND_NUM_STACKS; i++) {
    if (walk->thread->stacks[i].high == old_high) {
      walk->thread->stacks[i].high = walk->high;
    }
  }
  return true;
}

// Loads the word at `address` of the stack whose pointer is `sp`.
static inline bool load(walk_t *walk, uintptr_t sp, uintptr_t address,
                        uintptr_t *out_word) {
  if (address < sp || (address & 7) != 0 ||
      (address + 8 > walk->high && !extend_stack(walk, address + 8))) {
    return false;
  }
  memcpy(out_word, (const void *)address, sizeof(*out_word));
  return true;
}

static bool step_frame_pointer(walk_t *walk, frame_t *frame) {
  uintptr_t bp = frame->bp;
  uintptr_t ip;
  uintptr_t outer_bp;
  if (bp < frame->sp || bp - frame->sp > GUESSED_FRAME_BYTES_MAX ||
      !load(walk, frame->sp, bp, &outer_bp) ||
      !load(walk, frame->sp, bp + 8, &ip) || ip < PROBE_BYTES ||
      ip >= ADDRESS_MAX) {
    return false;
  }
  frame->ip = ip;
  frame->sp = bp + 16;
  frame->bp = outer_bp;
  frame->ip_is_exact = false;
  return true;
}

#if defined(__x86_64__)

static inline size_t cache_index(uintptr_t address) {
  return (size_t)((address * UINT64_C(0x9e3779b97f4a7c15)) >>
                  (64 - CACHE_BITS));
}

static __attribute__((noinline)) cfi_rule_t find_rule(unwind_cache_t *cache,
                                                      uintptr_t address) {
  cfi_rule_t rule = cfi_rule_find(address);
  if (rule.kind == CFI_NO_TABLE &&
      cfi_rule_find(address + 1).kind != CFI_NO_TABLE) {
    // A "return" to the first byte of a function: nobody called it, it was put
    // there to be returned to (libc's makecontext does so).
    rule.kind = CFI_OUTERMOST;
  }
  uint64_t word;
  memcpy(&word, &rule, sizeof(word));
  size_t index = cache_index(address);
  atomic_store_explicit(&cache->entries[index].rule, word,
                        memory_order_relaxed);
  atomic_store_explicit(&cache->entries[index].mixed, word ^ address,
                        memory_order_relaxed);
  return rule;
}

static inline cfi_rule_t cached_rule(unwind_cache_t *cache, uintptr_t address) {
  size_t index = cache_index(address);
  uint64_t word =
      atomic_load_explicit(&cache->entries[index].rule, memory_order_relaxed);
  uint64_t mixed =
      atomic_load_explicit(&cache->entries[index].mixed, memory_order_relaxed);
  if ((word ^ mixed) != address) {
    return find_rule(cache, address);
  }
  cfi_rule_t rule;
  memcpy(&rule, &word, sizeof(rule));
  return rule;
}

void unwind_cache_forget(unwind_cache_t *cache, uintptr_t start,
                         uintptr_t end) {
  for (size_t i = 0; i < CACHE_ENTRIES; i++) {
    uint64_t word =
        atomic_load_explicit(&cache->entries[i].rule, memory_order_relaxed);
    uint64_t mixed =
        atomic_load_explicit(&cache->entries[i].mixed, memory_order_relaxed);
    uint64_t address = word ^ mixed;
    if (address >= start && address < end) {
      // Address 0 is looked up by nobody.
      atomic_store_explicit(&cache->entries[i].mixed, word,
                            memory_order_relaxed);
    }
  }
}

// The registers that the kernel saved when it called a signal handler, in a
// ucontext_t at the stack pointer of the trampoline that the handler returns
// to.
static bool step_signal(walk_t *walk, frame_t *frame) {
  uintptr_t context = frame->sp;
  uintptr_t registers = context + offsetof(ucontext_t, uc_mcontext.gregs);
  uintptr_t sp;
  frame_t outer = {.ip_is_exact = true};
  if (!load(walk, context, registers + 8 * REG_RSP, &sp) ||
      !load(walk, context, registers + 8 * REG_RIP, &outer.ip) ||
      !load(walk, context, registers + 8 * REG_RBP, &outer.bp) ||
      !load(walk, context, registers + 8 * REG_RBX, &outer.bx)) {
    return false;
  }
  // The interrupted code's stack pointer is not ours, so it is tried first.
  if (sp < PROBE_BYTES || sp >= ADDRESS_MAX || !page_is_readable(sp)) {
    return false;
  }
  outer.sp = sp;
  enter_stack(walk, sp);
  *frame = outer;
  return true;
}

static inline bool load_register(walk_t *walk, const frame_t *frame,
                                 uintptr_t cfa, cfi_place_t place, int8_t words,
                                 uintptr_t *inout_value) {
  if (place == CFI_SAME) {
    return true;
  }
  uintptr_t base = place == CFI_AT_CFA ? cfa : frame->bp;
  return load(walk, frame->sp, base + (uintptr_t)((intptr_t)words * 8),
              inout_value);
}

// Replaces the frame by its caller's; false when there is none to be found.
static inline bool step(walk_t *walk, frame_t *frame, cfi_rule_t rule) {
  uintptr_t cfa;
  uintptr_t offset = (uintptr_t)(intptr_t)rule.cfa_offset;
  switch (rule.kind) {
    case CFI_CFA_RSP:
      cfa = frame->sp + offset;
      break;
    case CFI_CFA_RBP:
      cfa = frame->bp + offset;
      break;
    case CFI_CFA_RBX:
      cfa = frame->bx + offset;
      break;
    case CFI_CFA_DEREF_RBP:
      if (!load(walk, frame->sp, frame->bp + offset, &cfa)) {
        return false;
      }
      break;
    case CFI_SIGNAL_FRAME:
      return step_signal(walk, frame);
    case CFI_NO_TABLE:
      return step_frame_pointer(walk, frame);
    default:
      return false;
  }
  frame_t outer = *frame;
  if (cfa <= frame->sp || !load(walk, frame->sp, cfa - 8, &outer.ip) ||
      !load_register(walk, frame, cfa, cfi_rule_rbp_place(rule), rule.rbp_words,
                     &outer.bp) ||
      !load_register(walk, frame, cfa, cfi_rule_rbx_place(rule), rule.rbx_words,
                     &outer.bx)) {
    return false;
  }
  outer.sp = cfa;
  outer.ip_is_exact = false;
  *frame = outer;
  return true;
}

// `frame` becomes the function's that this is expanded in, as seen from here.
#define FRAME_HERE(frame)                                        \
  __asm__ volatile(                                              \
      "leaq 0(%%rip), %0\n\t"                                    \
      "movq %%rsp, %1\n\t"                                       \
      "movq %%rbp, %2\n\t"                                       \
      "movq %%rbx, %3"                                           \
      : "=&r"((frame).ip), "=&r"((frame).sp), "=&r"((frame).bp), \
        "=&r"((frame).bx))

#else  // !defined(__x86_64__)

static inline cfi_rule_t cached_rule(unwind_cache_t *cache, uintptr_t address) {
  (void)cache;
  (void)address;
  return (cfi_rule_t){.kind = CFI_NO_TABLE};
}

void unwind_cache_forget(unwind_cache_t *cache, uintptr_t start,
                         uintptr_t end) {
  (void)cache;
  (void)start;
  (void)end;
}

static inline bool step(walk_t *walk, frame_t *frame, cfi_rule_t rule) {
  (void)rule;
  return step_frame_pointer(walk, frame);
}

#define FRAME_HERE(frame)                               \
  do {                                                  \
    (frame).bp = (uintptr_t)__builtin_frame_address(0); \
    (frame).sp = (frame).bp;                            \
  } while (false)

#endif  // !defined(__x86_64__)

// noinline: the walk begins with this function's own frame.
__attribute__((noinline)) size_t unwind_capture(
    unwind_cache_t *cache, unwind_thread_t *thread, unwind_skip_t skip,
    uintptr_t *out_frames, size_t capacity, bool *out_cut) {
  walk_t walk = {.cache = cache, .thread = thread};
  frame_t frame = {.ip_is_exact = true};
  FRAME_HERE(frame);
  enter_stack(&walk, frame.sp);
  size_t num_frames = 0;
  // Our own frames do not count against the capacity, but end somewhere.
  size_t steps_left = capacity + 64;
  *out_cut = false;
  for (;;) {
    cfi_rule_t rule =
        cached_rule(cache, frame.ip - (frame.ip_is_exact ? 0 : 1));
    // The ABIs mark the outermost frame by a frame pointer of zero; the code
    // there (the loader's entry) has no information.
    if (rule.kind == CFI_OUTERMOST ||
        (rule.kind == CFI_NO_TABLE && frame.bp == 0)) {
      return num_frames;
    }
    if (!step(&walk, &frame, rule) || steps_left-- == 0) {
      break;
    }
    if (frame.ip == 0) {
      return num_frames;  // How some threads' stacks are begun.
    }
    bool skipped = frame.ip - skip.start < skip.end - skip.start;
    if (num_frames != 0 || !skipped) {
      if (num_frames == capacity) {
        break;
      }
      out_frames[num_frames++] = frame.ip;
    }
  }
  *out_cut = true;
  return num_frames;
}
