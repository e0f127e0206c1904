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
// Most stacks share their outer frames with the one captured before. So that
// one's frames are kept, with registers, and with the place where the caller's
// rbp was found. Once the walk comes to a frame with the ip, rsp and rbp of a
// kept one, the kept ones are compared with memory instead of walked: the same
// rule applied to the same registers looks at the same places, so if the words
// there are the same, so is the rest. Frames whose rule is not of that form
// (the CFA itself in memory; signal frames; rbx) are marked, and walked.
//
//   kept:   |       unused       | inner ... | join ... | outermost |
//   fresh:  | innermost ... | just inside the join |
//   kept then:   | innermost ... just inside | join ... | outermost |
//
// The frames that stay are not touched: that is why the kept ones lie at the
// end of their array. Only stacks that were followed to their end are kept.
//
// Invariants of the walk:
//   1. `low <= rsp` and everything in [rsp, high) is readable (stack_memory.h).
//   2. rsp grows with every step (a signal frame may change stacks), and the
//      number of steps is bounded: no damaged chain holds us.
//   3. Behind kept frames, rbx is not known. A rule that needs it there makes
//      the walk start again without the kept ones.
//   4. Kept frames [first_kept, UNWIND_FRAMES_MAX) are one whole stack.

#include "leakcheck/unwind.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>
#include <ucontext.h>

#include "leakcheck/cfi.h"

#define CACHE_BITS 16
#define CACHE_ENTRIES ((size_t)1 << CACHE_BITS)
// Frame pointers are a guess, so they are believed over short distances only.
#define GUESSED_FRAME_BYTES_MAX ((uintptr_t)1 << 20)
// Frames walked beyond the capacity: those that are skipped.
#define OWN_FRAMES_MAX 16
// Nothing is ever mapped below.
#define PAGE_ZERO_BYTES ((uintptr_t)4096)

static_assert(UNWIND_CAPACITY_MAX + OWN_FRAMES_MAX <= UNWIND_FRAMES_MAX,
              "the longest stack must fit");

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
  uintptr_t high;  // Of the stack: readable up to here.
  bool knows_bx;
  bool needs_bx;  // Ended for want of it.
} walk_t;

// What `unwind_frame_t.link` says besides the place of the outer frame's rbp.
enum {
  LINK_EXACT = 1,   // The frame's ip is not a return address.
  LINK_WALKED = 2,  // The step to the next frame must be walked.
  LINK_FLAGS = 7,
};

size_t unwind_cache_bytes(void) {
  return sizeof(unwind_cache_t);
}

void unwind_thread_forget(unwind_thread_t *thread) {
  thread->first_kept = UNWIND_FRAMES_MAX;
}

// Loads a word of the stack whose pointer is `sp`.
static inline bool load(walk_t *walk, uintptr_t sp, uintptr_t address,
                        uintptr_t *out_word) {
  return stack_memory_load(&walk->thread->memory, &walk->high, sp, address,
                           out_word);
}

static bool step_frame_pointer(walk_t *walk, frame_t *frame,
                               uintptr_t *out_link) {
  uintptr_t bp = frame->bp;
  uintptr_t ip;
  uintptr_t outer_bp;
  if (bp < frame->sp || bp - frame->sp > GUESSED_FRAME_BYTES_MAX ||
      !load(walk, frame->sp, bp, &outer_bp) ||
      !load(walk, frame->sp, bp + 8, &ip) || ip < PAGE_ZERO_BYTES ||
      ip >= STACK_MEMORY_ADDRESS_MAX) {
    return false;
  }
  *out_link = bp;
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
  if (sp < PAGE_ZERO_BYTES || sp >= STACK_MEMORY_ADDRESS_MAX ||
      !stack_memory_is_readable(sp)) {
    return false;
  }
  outer.sp = sp;
  walk->high = stack_memory_enter(&walk->thread->memory, sp);
  walk->knows_bx = true;
  *frame = outer;
  return true;
}

static inline bool load_register(walk_t *walk, const frame_t *frame,
                                 uintptr_t cfa, cfi_place_t place, int8_t words,
                                 uintptr_t *inout_value,
                                 uintptr_t *out_address) {
  if (place == CFI_SAME) {
    *out_address = 0;
    return true;
  }
  uintptr_t base = place == CFI_AT_CFA ? cfa : frame->bp;
  *out_address = base + (uintptr_t)((intptr_t)words * 8);
  return load(walk, frame->sp, *out_address, inout_value);
}

// The last part of a step, when the CFA is known. Inlined, as it is most of it.
static inline __attribute__((always_inline)) bool step_to(walk_t *walk,
                                                          frame_t *frame,
                                                          cfi_rule_t rule,
                                                          uintptr_t cfa,
                                                          uintptr_t *out_link) {
  frame_t outer = *frame;
  uintptr_t bx_address;
  if (cfa <= frame->sp || !load(walk, frame->sp, cfa - 8, &outer.ip) ||
      !load_register(walk, frame, cfa, cfi_rule_rbp_place(rule), rule.rbp_words,
                     &outer.bp, out_link) ||
      !load_register(walk, frame, cfa, cfi_rule_rbx_place(rule), rule.rbx_words,
                     &outer.bx, &bx_address)) {
    return false;
  }
  walk->knows_bx |= bx_address != 0;
  outer.sp = cfa;
  outer.ip_is_exact = false;
  *frame = outer;
  return true;
}

// Rules that few functions have.
static __attribute__((noinline)) bool step_rarely(walk_t *walk, frame_t *frame,
                                                  cfi_rule_t rule,
                                                  uintptr_t *out_link) {
  uintptr_t cfa;
  uintptr_t offset = (uintptr_t)(intptr_t)rule.cfa_offset;
  uintptr_t link = 0;
  bool done = false;
  switch (rule.kind) {
    case CFI_CFA_RBX:
      walk->needs_bx = !walk->knows_bx;
      done = walk->knows_bx &&
             step_to(walk, frame, rule, frame->bx + offset, &link);
      break;
    case CFI_CFA_DEREF_RBP:
      done = load(walk, frame->sp, frame->bp + offset, &cfa) &&
             step_to(walk, frame, rule, cfa, &link);
      break;
    case CFI_SIGNAL_FRAME:
      done = step_signal(walk, frame);
      break;
    case CFI_NO_TABLE:
      return step_frame_pointer(walk, frame, out_link);
    default:
      break;
  }
  *out_link = LINK_WALKED;
  return done;
}

// Replaces the frame by its caller's; false when there is none to be found.
static inline bool step(walk_t *walk, frame_t *frame, cfi_rule_t rule,
                        uintptr_t *out_link) {
  uintptr_t offset = (uintptr_t)(intptr_t)rule.cfa_offset;
  if (rule.kind == CFI_CFA_RSP) {
    return step_to(walk, frame, rule, frame->sp + offset, out_link);
  }
  if (rule.kind == CFI_CFA_RBP) {
    return step_to(walk, frame, rule, frame->bp + offset, out_link);
  }
  return step_rarely(walk, frame, rule, out_link);
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

static inline bool step(walk_t *walk, frame_t *frame, cfi_rule_t rule,
                        uintptr_t *out_link) {
  (void)rule;
  return step_frame_pointer(walk, frame, out_link);
}

#define FRAME_HERE(frame)                               \
  do {                                                  \
    (frame).bp = (uintptr_t)__builtin_frame_address(0); \
    (frame).sp = (frame).bp;                            \
  } while (false)

#endif  // !defined(__x86_64__)

// A walk in progress: frames so far, and where the kept ones may be met.
typedef struct capture {
  walk_t walk;
  frame_t frame;
  size_t num_fresh;
  size_t max_fresh;
  size_t next_kept;  // UNWIND_FRAMES_MAX: none.
  bool is_whole;     // Ended where the stack does.
} capture_t;

static inline uintptr_t word_at(uintptr_t address) {
  uintptr_t word;
  memcpy(&word, (const void *)address, sizeof(word));
  return word;
}

// Returns the last of the kept frames from `index` on that are still there.
static inline size_t compare_kept(const unwind_frame_t *kept, size_t index) {
  for (; index + 1 < UNWIND_FRAMES_MAX; index++) {
    const unwind_frame_t *outer = &kept[index + 1];
    uintptr_t link = kept[index].link;
    uintptr_t rbp_address = link & ~(uintptr_t)LINK_FLAGS;
    if ((link & LINK_WALKED) != 0 || word_at(outer->sp - 8) != outer->ip ||
        (rbp_address != 0 && word_at(rbp_address) != outer->bp)) {
      break;
    }
  }
  return index;
}

// True when the current frame is a kept one, whose index `next_kept` then is.
static inline bool meets_kept(capture_t *capture) {
  const unwind_frame_t *kept = capture->walk.thread->kept;
  const frame_t *frame = &capture->frame;
  size_t i = capture->next_kept;
  while (i < UNWIND_FRAMES_MAX && kept[i].sp < frame->sp) {
    i++;
  }
  capture->next_kept = i;
  return i < UNWIND_FRAMES_MAX && kept[i].sp == frame->sp &&
         kept[i].ip == frame->ip && kept[i].bp == frame->bp &&
         ((kept[i].link & LINK_EXACT) != 0) == frame->ip_is_exact;
}

// From a kept frame on: true when the rest of the stack is as it was. Else the
// frames that are still there become fresh ones, and the last the current one.
static bool follow_kept(capture_t *capture) {
  unwind_thread_t *thread = capture->walk.thread;
  size_t first = capture->next_kept;
  size_t last = compare_kept(thread->kept, first);
  if (last + 1 == UNWIND_FRAMES_MAX) {
    return true;
  }
  capture->next_kept = last + 1;
  if (last - first > capture->max_fresh - capture->num_fresh) {
    last = first + (capture->max_fresh - capture->num_fresh);
  }
  memcpy(&thread->fresh[capture->num_fresh], &thread->kept[first],
         (last - first) * sizeof(thread->kept[0]));
  capture->num_fresh += last - first;
  if (last != first) {
    const unwind_frame_t *kept = &thread->kept[last];
    capture->frame = (frame_t){.ip = kept->ip, .sp = kept->sp, .bp = kept->bp};
    capture->walk.knows_bx = false;
  }
  return false;
}

static inline void add_fresh(capture_t *capture, const frame_t *frame,
                             uintptr_t link) {
  capture->walk.thread->fresh[capture->num_fresh++] =
      (unwind_frame_t){frame->ip, frame->sp, frame->bp,
                       link | (frame->ip_is_exact ? LINK_EXACT : 0)};
}

// Walks until the stack ends, kept frames are met that still hold, or nothing
// more can be done.
static void walk_stack(capture_t *capture) {
  walk_t *walk = &capture->walk;
  frame_t *frame = &capture->frame;
  while (capture->num_fresh < capture->max_fresh) {
    if (meets_kept(capture) && follow_kept(capture)) {
      capture->is_whole = true;
      return;
    }
    cfi_rule_t rule =
        cached_rule(walk->cache, frame->ip - (frame->ip_is_exact ? 0 : 1));
    frame_t inner = *frame;
    uintptr_t link = LINK_WALKED;
    // The ABIs mark the outermost frame by a frame pointer of zero; the code
    // there (the loader's entry) has no information. A return address of zero
    // is how some threads' stacks are begun.
    bool is_outermost = rule.kind == CFI_OUTERMOST ||
                        (rule.kind == CFI_NO_TABLE && frame->bp == 0);
    bool done = !is_outermost && step(walk, frame, rule, &link);
    if (capture->num_fresh == capture->max_fresh) {
      return;
    }
    add_fresh(capture, &inner, link);
    if (!done || frame->ip == 0) {
      capture->is_whole = is_outermost || done;
      capture->next_kept = UNWIND_FRAMES_MAX;
      return;
    }
  }
}

// Puts the fresh frames in front of the kept ones that stay, if there is room.
static bool keep_fresh(capture_t *capture) {
  unwind_thread_t *thread = capture->walk.thread;
  size_t first_staying = capture->next_kept;
  if (capture->num_fresh > first_staying) {
    return false;
  }
  thread->first_kept = (uint32_t)(first_staying - capture->num_fresh);
  memcpy(&thread->kept[thread->first_kept], thread->fresh,
         capture->num_fresh * sizeof(thread->fresh[0]));
  return true;
}

// noinline: the walk begins with this function's own frame.
__attribute__((noinline)) void unwind_capture(unwind_cache_t *cache,
                                              unwind_thread_t *thread,
                                              unwind_skip_t skip,
                                              size_t capacity,
                                              unwind_stack_t *out_stack) {
  capture_t capture = {.walk = {.cache = cache, .thread = thread},
                       .next_kept = thread->first_kept,
                       .max_fresh = capacity + OWN_FRAMES_MAX};
  frame_t start = {.ip_is_exact = true};
  FRAME_HERE(start);
  assert(capacity <= UNWIND_CAPACITY_MAX);
  do {
    capture.walk.knows_bx = true;
    capture.walk.needs_bx = false;
    capture.walk.high = stack_memory_enter(&thread->memory, start.sp);
    capture.frame = start;
    capture.num_fresh = 0;
    walk_stack(&capture);
    if (capture.walk.needs_bx) {
      capture.next_kept = UNWIND_FRAMES_MAX;
    }
  } while (capture.walk.needs_bx);
  const unwind_frame_t *end = &thread->fresh[capture.num_fresh];
  const unwind_frame_t *first = thread->fresh;
  size_t num_same = 0;
  if (capture.is_whole && keep_fresh(&capture)) {
    first = &thread->kept[thread->first_kept];
    end = &thread->kept[UNWIND_FRAMES_MAX];
    num_same = UNWIND_FRAMES_MAX - capture.next_kept;
  } else {
    unwind_thread_forget(thread);
  }
  first++;  // This function's own.
  while (first != end && first->ip - skip.start < skip.end - skip.start) {
    first++;
  }
  size_t num_frames = (size_t)(end - first);
  out_stack->cut = !capture.is_whole || num_frames > capacity;
  out_stack->frames = first;
  out_stack->num_frames = num_frames < capacity ? num_frames : capacity;
  out_stack->num_same = num_same < num_frames ? num_same : num_frames;
}
