// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Pieces tile the heap. A free piece joins its free neighbours at once, which
// the bitmap of starts leads to in both directions; boundary tags (Knuth
// 1, 2.5) would do the same, but lie where programs write. A buddy heap joins
// only buddies, and cuts only in halves.
//
// What a strategy keeps in free pieces may have been overwritten by the
// program. The bitmaps were not: from them all pieces are told to the strategy
// anew, and the call goes on. It reports the piece when the lock is free.
//
// Invariants:
//  1. `starts` has 0, every piece's first granule and `count`; `frees` is a
//  part
//     of it.
//  2. No two free pieces are neighbours; in a buddy heap, no two buddies.
//  3. live_length and live_count are those of the live pieces.
//  4. The strategy knows exactly the free pieces.

#include "heap/piece.h"

#include "heap/fatal.h"

enum {
  // Told anew so often, and broken again: some thread goes on writing.
  REBUILDS_MAX = 8,
};

static void note_broken(heap_t *heap, uint32_t start) {
  if (heap->broken_at == HEAP_FIT_NONE) {
    heap->broken_at = start;
  }
}

static bool tell_all(heap_t *heap) {
  heap->fit->reset(heap);
  for (uint32_t start = heap_bit_tree_next(&heap->frees, 0);
       start != HEAP_BIT_NONE;
       start = heap_bit_tree_next(&heap->frees, start + 1)) {
    if (!heap->fit->insert(heap, start, heap_fit_length(heap, start))) {
      return false;
    }
  }
  return true;
}

// Tells the strategy all pieces anew, since one near `start` was overwritten.
static void rebuild(heap_t *heap, uint32_t start) {
  note_broken(heap, start);
  for (int tries = 0; tries < REBUILDS_MAX; ++tries) {
    if (tell_all(heap)) {
      return;
    }
  }
  HEAP_DIE("private heap: free blocks are written to all the time");
}

// The granules [start, start + length) become a free piece.
static void add_free(heap_t *heap, uint32_t start, uint32_t length) {
  heap_bit_tree_add(&heap->starts, start);
  heap_bit_tree_add(&heap->frees, start);
  if (!heap->fit->insert(heap, start, length)) {
    rebuild(heap, start);
  }
}

// The free piece is none any more; its start stays in `starts`.
static void remove_free(heap_t *heap, uint32_t start, uint32_t length) {
  for (int tries = 0; !heap->fit->remove(heap, start, length); ++tries) {
    if (tries == REBUILDS_MAX) {
      HEAP_DIE("private heap: free blocks are written to all the time");
    }
    rebuild(heap, start);
  }
  heap_bit_tree_remove(&heap->frees, start);
}

static uint32_t find(heap_t *heap, uint32_t length, size_t align_bytes) {
  uint32_t start = heap->fit->find(heap, length, align_bytes);
  if (start == HEAP_FIT_BROKEN) {
    rebuild(heap, HEAP_FIT_NONE - 1);
    start = heap->fit->find(heap, length, align_bytes);
  }
  return start == HEAP_FIT_BROKEN ? HEAP_FIT_NONE : start;
}

static void note_live(heap_t *heap, uint32_t length) {
  heap->live_length += length;
  if (heap->live_length > heap->peak_length) {
    heap->peak_length = heap->live_length;
  }
}

// Buddies.

// Halves the piece, whose start is not free, until it is as short as `length`
// allows; upper halves become free. Returns its length.
static uint32_t buddy_cut(heap_t *heap, uint32_t start, uint32_t piece_length,
                          uint32_t length) {
  while (piece_length / 2 >= length) {
    ++heap->steps;
    piece_length /= 2;
    add_free(heap, start + piece_length, piece_length);
  }
  return piece_length;
}

// Makes a piece free, joined with its buddy, and that one's, as far as it goes.
static void buddy_free(heap_t *heap, uint32_t start, uint32_t length) {
  for (;;) {
    uint32_t buddy = start ^ length;
    if (buddy >= heap->count || length > heap->count - buddy ||
        !heap_bit_tree_has(&heap->frees, buddy) ||
        heap_fit_length(heap, buddy) != length) {
      break;
    }
    ++heap->steps;
    remove_free(heap, buddy, length);
    heap_bit_tree_remove(&heap->starts, start | length);
    start &= ~length;
    length *= 2;
  }
  add_free(heap, start, length);
}

// Tells whether a piece can become `wanted` long by taking in buddies.
static bool buddy_can_grow(heap_t *heap, uint32_t start, uint32_t length,
                           uint32_t wanted) {
  for (; length < wanted; length *= 2) {
    uint32_t buddy = start + length;
    if ((start & length) != 0 || buddy >= heap->count ||
        !heap_bit_tree_has(&heap->frees, buddy) ||
        heap_fit_length(heap, buddy) != length) {
      return false;
    }
  }
  return true;
}

static bool buddy_resize(heap_t *heap, uint32_t start, uint32_t length,
                         uint32_t wanted) {
  wanted = UINT32_C(1) << heap_fit_order(wanted);
  if (!buddy_can_grow(heap, start, length, wanted)) {
    return false;
  }
  heap->live_length -= length;
  for (; length < wanted; length *= 2) {
    ++heap->steps;
    remove_free(heap, start + length, length);
    heap_bit_tree_remove(&heap->starts, start + length);
  }
  note_live(heap, buddy_cut(heap, start, length, wanted));
  return true;
}

// The others.

// Cuts off what is behind the first `length` granules of a piece whose start is
// not free, if it is long enough. Returns the length of the piece.
static uint32_t cut(heap_t *heap, uint32_t start, uint32_t piece_length,
                    uint32_t length) {
  if (piece_length - length < heap->split_length) {
    return piece_length;
  }
  add_free(heap, start + length, piece_length - length);
  return length;
}

// Makes a piece free, joined with its free neighbours.
static void join_free(heap_t *heap, uint32_t start, uint32_t length) {
  uint32_t end = start + length;
  if (end < heap->count && heap_bit_tree_has(&heap->frees, end)) {
    uint32_t next_length = heap_fit_length(heap, end);
    remove_free(heap, end, next_length);
    heap_bit_tree_remove(&heap->starts, end);
    length += next_length;
  }
  if (start > 0) {
    uint32_t prev = heap_bit_tree_prev(&heap->starts, start - 1);
    if (heap_bit_tree_has(&heap->frees, prev)) {
      remove_free(heap, prev, start - prev);
      heap_bit_tree_remove(&heap->starts, start);
      length += start - prev;
      start = prev;
    }
  }
  add_free(heap, start, length);
}

static bool join_resize(heap_t *heap, uint32_t start, uint32_t length,
                        uint32_t wanted) {
  uint32_t old_length = length;
  uint32_t end = start + length;
  bool is_free_behind =
      end < heap->count && heap_bit_tree_has(&heap->frees, end);
  uint32_t behind = is_free_behind ? heap_fit_length(heap, end) : 0;
  if (wanted > length && wanted - length > behind) {
    return false;
  }
  if (wanted == length) {
    return true;
  }
  if (is_free_behind) {
    remove_free(heap, end, behind);
    heap_bit_tree_remove(&heap->starts, end);
    length += behind;
  }
  // What was free goes back even if it is shorter than what is split off.
  uint32_t now = wanted < old_length ? wanted : length;
  if (wanted >= old_length) {
    now = cut(heap, start, length, wanted);
  } else if (length - wanted >= heap->split_length) {
    add_free(heap, start + wanted, length - wanted);
  } else {
    now = length;
  }
  heap->live_length -= old_length;
  note_live(heap, now);
  return true;
}

uint32_t heap_piece_take(heap_t *heap, uint32_t length, size_t align_bytes) {
  uint32_t piece = find(heap, length, align_bytes);
  if (piece == HEAP_FIT_NONE) {
    return HEAP_FIT_NONE;
  }
  uint32_t piece_length = heap_fit_length(heap, piece);
  remove_free(heap, piece, piece_length);
  uint32_t start = piece;
  if (heap->is_buddy) {
    uint32_t align_length = (uint32_t)(align_bytes >> heap->granule_shift);
    piece_length = buddy_cut(heap, piece, piece_length,
                             length > align_length ? length : align_length);
  } else {
    start = (uint32_t)heap_fit_align(heap, piece, align_bytes);
    if (start > piece) {
      add_free(heap, piece, start - piece);
      heap_bit_tree_add(&heap->starts, start);
    }
    piece_length = cut(heap, start, piece_length - (start - piece), length);
  }
  ++heap->live_count;
  note_live(heap, piece_length);
  if (heap->fit == &heap_fit_next) {
    heap->rover = start + piece_length;
  }
  return start;
}

void heap_piece_free(heap_t *heap, uint32_t start) {
  uint32_t length = heap_fit_length(heap, start);
  --heap->live_count;
  heap->live_length -= length;
  (heap->is_buddy ? buddy_free : join_free)(heap, start, length);
}

bool heap_piece_resize(heap_t *heap, uint32_t start, uint32_t length) {
  uint32_t old_length = heap_fit_length(heap, start);
  return (heap->is_buddy ? buddy_resize : join_resize)(heap, start, old_length,
                                                       length);
}

// The largest buddies that tile `length` granules from `start` on.
static void append_buddies(heap_t *heap, uint32_t start, uint32_t length) {
  while (length > 0) {
    uint32_t piece = UINT32_C(1) << (31 - (unsigned)__builtin_clz(length));
    if (start != 0) {
      uint32_t aligned = start & (~start + 1);
      piece = piece < aligned ? piece : aligned;
    }
    heap->count = start + piece;
    heap_bit_tree_add(&heap->starts, heap->count);
    buddy_free(heap, start, piece);
    start += piece;
    length -= piece;
  }
}

void heap_piece_append(heap_t *heap, uint32_t length) {
  uint32_t start = heap->count;
  if (heap->is_buddy) {
    append_buddies(heap, start, length);
    return;
  }
  heap->count += length;
  heap_bit_tree_add(&heap->starts, heap->count);
  join_free(heap, start, length);
}

void heap_piece_free_all(heap_t *heap) {
  uint32_t count = heap->count;
  heap_bit_tree_clear(&heap->starts, count + 1);
  heap_bit_tree_clear(&heap->frees, count + 1);
  heap->fit->reset(heap);
  heap->live_length = 0;
  heap->live_count = 0;
  heap->count = 0;
  heap_bit_tree_add(&heap->starts, 0);
  if (count > 0) {
    heap_piece_append(heap, count);
  }
}

static const char *check_pieces(heap_t *heap) {
  uint32_t live_length = 0;
  uint32_t live_count = 0;
  bool was_free = false;
  if (!heap_bit_tree_has(&heap->starts, 0) ||
      !heap_bit_tree_has(&heap->starts, heap->count)) {
    return "private heap: pieces that do not tile it";
  }
  for (uint32_t start = 0; start < heap->count;) {
    uint32_t length = heap_fit_length(heap, start);
    bool is_free = heap_bit_tree_has(&heap->frees, start);
    if (is_free && was_free && !heap->is_buddy) {
      return "private heap: two free neighbours";
    }
    live_length += is_free ? 0 : length;
    live_count += !is_free;
    was_free = is_free;
    start += length;
  }
  for (uint32_t start = heap_bit_tree_next(&heap->frees, 0);
       start != HEAP_BIT_NONE;
       start = heap_bit_tree_next(&heap->frees, start + 1)) {
    if (!heap_bit_tree_has(&heap->starts, start)) {
      return "private heap: a free piece that is none";
    }
  }
  return live_length == heap->live_length && live_count == heap->live_count
             ? NULL
             : "private heap: live pieces are not counted right";
}

const char *heap_piece_check(heap_t *heap) {
  if (!heap_bit_tree_is_sound(&heap->starts, heap->count + 1) ||
      !heap_bit_tree_is_sound(&heap->frees, heap->count)) {
    return "private heap: a bitmap whose summary is wrong";
  }
  const char *broken = check_pieces(heap);
  return broken != NULL ? broken : heap->fit->check(heap);
}
