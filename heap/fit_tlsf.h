// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A TLSF's alloc and free, inline: what piece.c does with any strategy, for
// plain blocks and where nothing is broken. It differs in what a call touches:
// a piece that shrinks or grows within the range of its list keeps its place
// there, and a bit that would be cleared and set again stays.
//
// Whatever does not look as it should is left to piece.c, before anything was
// changed, or with a change that is whole in itself. No call takes more steps
// than the same one there.
//
// None of these calls a function, or its registers would be saved each time.
// So they look for the ends of pieces nearby only (`bit_tree.h`), unless
// `is_far`, and what is for the higher levels of `starts` is left to the
// caller.
//
// All functions: the heap's lock held.

#ifndef MY_ALLOC_HEAP_FIT_TLSF_H_
#define MY_ALLOC_HEAP_FIT_TLSF_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/fit_list.h"
#include "heap/piece.h"

#ifdef __cplusplus
extern "C" {
#endif

// Or gcc would make one of it for all tunings.
#define HEAP_FIT_TLSF_INLINE static inline __attribute__((always_inline))

// What the functions need of the options: constants where these are known, so
// that shifts by them are, too.
typedef struct heap_fit_tlsf_tuning {
  uint32_t granule_shift;
  uint32_t lists_log2;
} heap_fit_tlsf_tuning_t;

// The defaults'.
#define HEAP_FIT_TLSF_TUNING \
  ((heap_fit_tlsf_tuning_t){HEAP_FIT_GRANULE_SHIFT, HEAP_FIT_TLSF_LISTS_LOG2})

// A length below has a list from which on all pieces are long enough.
#define HEAP_FIT_TLSF_LENGTH_END (UINT64_C(1) << 30)

static inline heap_fit_tlsf_tuning_t heap_fit_tlsf_tuning_of(
    const heap_t *heap) {
  return (heap_fit_tlsf_tuning_t){heap->granule_shift, heap->lists_log2};
}

// heap_fit_links_of()
static inline heap_fit_links_t *heap_fit_tlsf_links(
    const heap_t *heap, heap_fit_tlsf_tuning_t tuning, uint32_t start) {
  return (heap_fit_links_t *)(heap->base +
                              ((uintptr_t)start << tuning.granule_shift));
}

// Returns the lowest list in which all pieces are at least `length` long.
static inline uint32_t heap_fit_tlsf_list_above(heap_fit_tlsf_tuning_t tuning,
                                                uint32_t length) {
  uint32_t shift = heap_fit_list_shift(tuning.lists_log2, length);
  // Beyond the doubling's last list comes the next one's first.
  return (shift << tuning.lists_log2) +
         ((length + (UINT32_C(1) << shift) - 1) >> shift);
}

// heap_fit_list_push(), but changes nothing when it is false.
HEAP_FIT_TLSF_INLINE bool heap_fit_tlsf_push(heap_t *heap,
                                             heap_fit_tlsf_tuning_t tuning,
                                             uint32_t list, uint32_t start) {
  uint32_t head = heap->lists[list];
  heap_fit_links_t *links = heap_fit_tlsf_links(heap, tuning, start);
  if (head == 0) {
    links->first = 0;
    links->second = 0;
    heap_fit_list_start(heap, list, start + 1);
    return true;
  }
  heap_fit_links_t *next = heap_fit_tlsf_links(heap, tuning, head - 1);
  if (next->second != 0) {
    return false;
  }
  next->second = start + 1;
  links->first = head;
  links->second = 0;
  heap->lists[list] = start + 1;
  return true;
}

// Tells whether a push to the list would fail.
HEAP_FIT_TLSF_INLINE bool heap_fit_tlsf_is_broken(heap_t *heap,
                                                  heap_fit_tlsf_tuning_t tuning,
                                                  uint32_t list) {
  uint32_t head = heap->lists[list];
  return head != 0 && heap_fit_tlsf_links(heap, tuning, head - 1)->second != 0;
}

// Returns the links of the piece that `link`, which the one at `start` has as
// its next, leads to; NULL: none that leads back.
HEAP_FIT_TLSF_INLINE heap_fit_links_t *heap_fit_tlsf_follow(
    const heap_t *heap, heap_fit_tlsf_tuning_t tuning, uint32_t start,
    uint32_t link) {
  if (!heap_fit_is_free(heap, link)) {
    return NULL;
  }
  heap_fit_links_t *next = heap_fit_tlsf_links(heap, tuning, link - 1);
  return next->second == start + 1 ? next : NULL;
}

// heap_fit_list_remove()
HEAP_FIT_TLSF_INLINE bool heap_fit_tlsf_remove(heap_t *heap,
                                               heap_fit_tlsf_tuning_t tuning,
                                               uint32_t list, uint32_t start) {
  // Each is read once: whoever writes to them may go on.
  const heap_fit_links_t *links = heap_fit_tlsf_links(heap, tuning, start);
  uint32_t first = links->first;
  uint32_t second = links->second;
  heap_fit_links_t *prev = NULL;
  if (second == 0) {
    if (heap->lists[list] != start + 1) {
      return false;
    }
  } else {
    if (!heap_fit_is_free(heap, second)) {
      return false;
    }
    prev = heap_fit_tlsf_links(heap, tuning, second - 1);
    if (prev->first != start + 1) {
      return false;
    }
  }
  if (first != 0) {
    heap_fit_links_t *next = heap_fit_tlsf_follow(heap, tuning, start, first);
    if (next == NULL) {
      return false;
    }
    next->second = second;
  }
  if (prev != NULL) {
    prev->first = first;
  } else {
    heap_fit_list_set_head(heap, list, first);
  }
  return true;
}

static inline uint32_t heap_fit_tlsf_next(const heap_t *heap, uint32_t granule,
                                          bool is_far) {
  return is_far ? heap_bit_tree_next(&heap->starts, granule)
                : heap_bit_tree_next_near(&heap->starts, granule);
}

// Returns the first piece of a list in which all are at least `length` long,
// and its end; NONE: there is none, or it is not as it should be.
HEAP_FIT_TLSF_INLINE uint32_t heap_fit_tlsf_find(const heap_t *heap,
                                                 heap_fit_tlsf_tuning_t tuning,
                                                 uint32_t length, bool is_far,
                                                 uint32_t *out_list,
                                                 uint32_t *out_end) {
  uint32_t list =
      heap_fit_list_first(heap, heap_fit_tlsf_list_above(tuning, length));
  if (list == HEAP_FIT_NONE) {
    return HEAP_FIT_NONE;
  }
  uint32_t start = heap->lists[list] - 1;
  uint32_t end = heap_fit_tlsf_next(heap, start + 1, is_far);
  if (end == HEAP_BIT_NONE || end - start < length) {
    return HEAP_FIT_NONE;
  }
  *out_list = list;
  *out_end = end;
  return start;
}

// Takes the first piece of its list out of it, and puts the one at `to - 1`, 0:
// none, in its place. False: links are broken; nothing was changed.
HEAP_FIT_TLSF_INLINE bool heap_fit_tlsf_replace_first(
    heap_t *heap, heap_fit_tlsf_tuning_t tuning, uint32_t list, uint32_t start,
    uint32_t to) {
  const heap_fit_links_t *links = heap_fit_tlsf_links(heap, tuning, start);
  uint32_t first = links->first;
  if (links->second != 0) {
    return false;
  }
  if (first != 0) {
    heap_fit_links_t *next = heap_fit_tlsf_follow(heap, tuning, start, first);
    if (next == NULL) {
      return false;
    }
    next->second = to;
  }
  if (to == 0) {
    heap_fit_list_set_head(heap, list, first);
    return true;
  }
  heap->lists[list] = to;
  *heap_fit_tlsf_links(heap, tuning, to - 1) =
      (heap_fit_links_t){.first = first};
  return true;
}

// Both make the free piece [start, end), the first of its list, live. False:
// links are broken; it is free as it was.
HEAP_FIT_TLSF_INLINE bool heap_fit_tlsf_take_whole(
    heap_t *heap, heap_fit_tlsf_tuning_t tuning, uint32_t list, uint32_t start,
    uint32_t end) {
  if (!heap_fit_tlsf_replace_first(heap, tuning, list, start, 0)) {
    return false;
  }
  heap->steps += 10;
  heap_bit_tree_remove_flat(&heap->frees, start);
  heap_bit_tree_remove_flat(&heap->frees, end - 1);
  heap_piece_note_live(heap, end - start);
  return true;
}

// Only what is before `rest`; what is behind is a free piece then. `is_above`:
// the higher levels of `starts` are to be told of `rest`.
HEAP_FIT_TLSF_INLINE bool heap_fit_tlsf_take_part(heap_t *heap,
                                                  heap_fit_tlsf_tuning_t tuning,
                                                  uint32_t list, uint32_t start,
                                                  uint32_t end, uint32_t rest,
                                                  bool *is_above) {
  heap->steps += 15;
  uint32_t rest_list = heap_fit_list_of_tlsf(tuning.lists_log2, end - rest);
  if (rest_list == list) {
    if (!heap_fit_tlsf_replace_first(heap, tuning, list, start, rest + 1)) {
      return false;
    }
  } else {
    if (heap_fit_tlsf_is_broken(heap, tuning, rest_list) ||
        !heap_fit_tlsf_replace_first(heap, tuning, list, start, 0)) {
      return false;
    }
    heap_fit_tlsf_push(heap, tuning, rest_list, rest);
  }
  heap_bit_tree_remove_flat(&heap->frees, start);
  heap_bit_tree_add_flat(&heap->frees, rest);
  *is_above = heap_bit_tree_add_low(&heap->starts, rest);
  heap_piece_note_live(heap, rest - start);
  return true;
}

// Returns how many granules a block of `size_bytes` takes. 0: not plain, as 0
// bytes and what overflows to it are.
static inline uint32_t heap_fit_tlsf_length(heap_fit_tlsf_tuning_t tuning,
                                            size_t size_bytes) {
  uint64_t length = (size_bytes + ((size_t)1 << tuning.granule_shift) - 1) >>
                    tuning.granule_shift;
  return length < HEAP_FIT_TLSF_LENGTH_END ? (uint32_t)length : 0;
}

// Returns the start of a live piece of at least `length`, or NONE: not done.
static inline uint32_t heap_fit_tlsf_take(heap_t *heap, uint32_t length) {
  heap_fit_tlsf_tuning_t tuning = heap_fit_tlsf_tuning_of(heap);
  uint32_t list;
  uint32_t end;
  uint32_t start =
      length == 0 ? HEAP_FIT_NONE
                  : heap_fit_tlsf_find(heap, tuning, length, true, &list, &end);
  if (start == HEAP_FIT_NONE) {
    return HEAP_FIT_NONE;
  }
  uint32_t rest = start + length;
  bool is_above = false;
  bool is_done = end - rest < heap->split_length
                     ? heap_fit_tlsf_take_whole(heap, tuning, list, start, end)
                     : heap_fit_tlsf_take_part(heap, tuning, list, start, end,
                                               rest, &is_above);
  if (is_above) {
    heap_bit_tree_settle(&heap->starts, rest);
  }
  return is_done ? start : HEAP_FIT_NONE;
}

// Makes the live piece at [start, end) free, which has no free neighbour.
// False: links are broken; nothing was changed.
HEAP_FIT_TLSF_INLINE bool heap_fit_tlsf_free_alone(
    heap_t *heap, heap_fit_tlsf_tuning_t tuning, uint32_t start, uint32_t end) {
  if (!heap_fit_tlsf_push(heap, tuning,
                          heap_fit_list_of_tlsf(tuning.lists_log2, end - start),
                          start)) {
    return false;
  }
  heap->steps += 4;
  heap->live_length -= end - start;
  heap_bit_tree_add_flat(&heap->frees, start);
  heap_bit_tree_add_flat(&heap->frees, end - 1);
  return true;
}

typedef enum heap_fit_tlsf_freed {
  HEAP_FIT_TLSF_DONE,
  HEAP_FIT_TLSF_SETTLE,  // Done; the higher levels of `starts` are to be told.
  HEAP_FIT_TLSF_NOT,     // Nothing was done.
  HEAP_FIT_TLSF_BROKEN,  // Links are.
} heap_fit_tlsf_freed_t;

// Makes the live piece at [start, *end) free, with any neighbours. BROKEN: that
// piece, of which `end` may have changed, is live no more, and yet to be given
// to heap_piece_join(). SETTLE, BROKEN: `start` and the `end` given may not be
// in `starts` any more.
HEAP_FIT_TLSF_INLINE heap_fit_tlsf_freed_t
heap_fit_tlsf_free(heap_t *heap, heap_fit_tlsf_tuning_t tuning, uint32_t start,
                   uint32_t *end, bool is_far) {
  uint32_t old_end = *end;
  uint32_t new_end = old_end;
  uint32_t new_start = start;
  if (heap_bit_tree_has(&heap->frees, old_end)) {
    new_end = heap_fit_tlsf_next(heap, old_end + 1, is_far);
  }
  if (start > 0 && heap_bit_tree_has(&heap->frees, start - 1)) {
    new_start = is_far ? heap_bit_tree_prev(&heap->starts, start - 1)
                       : heap_bit_tree_prev_near(&heap->starts, start - 1);
  }
  if (!is_far && (new_end == HEAP_BIT_NONE || new_start == HEAP_BIT_NONE)) {
    return HEAP_FIT_TLSF_NOT;
  }
  heap->live_length -= old_end - start;
  bool is_above = false;
  if (new_end != old_end) {
    heap->steps += 9;
    uint32_t list = heap_fit_list_of_tlsf(tuning.lists_log2, new_end - old_end);
    if (!heap_fit_tlsf_remove(heap, tuning, list, old_end)) {
      return HEAP_FIT_TLSF_BROKEN;
    }
    is_above = heap_bit_tree_remove_low(&heap->starts, old_end);
    // A piece of one granule has one bit, which stays.
    heap->frees.levels[0][old_end / 64] &=
        ~((uint64_t)(new_end - old_end != 1) << (old_end % 64));
    *end = new_end;
  }
  uint32_t list = heap_fit_list_of_tlsf(tuning.lists_log2, new_end - new_start);
  if (new_start == start) {
    heap->steps += 4;
    if (!heap_fit_tlsf_push(heap, tuning, list, start)) {
      heap_bit_tree_remove_flat(&heap->frees, new_end - 1);
      return HEAP_FIT_TLSF_BROKEN;
    }
    heap_bit_tree_add_flat(&heap->frees, start);
  } else {
    heap->steps += 13;
    uint32_t old_list =
        heap_fit_list_of_tlsf(tuning.lists_log2, start - new_start);
    if (list != old_list &&
        (!heap_fit_tlsf_remove(heap, tuning, old_list, new_start) ||
         !heap_fit_tlsf_push(heap, tuning, list, new_start))) {
      heap_bit_tree_remove_flat(&heap->frees, new_end - 1);
      return HEAP_FIT_TLSF_BROKEN;
    }
    is_above |= heap_bit_tree_remove_low(&heap->starts, start);
    heap->frees.levels[0][(start - 1) / 64] &=
        ~((uint64_t)(start - new_start != 1) << ((start - 1) % 64));
  }
  heap_bit_tree_add_flat(&heap->frees, new_end - 1);
  return is_above ? HEAP_FIT_TLSF_SETTLE : HEAP_FIT_TLSF_DONE;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_FIT_TLSF_H_
