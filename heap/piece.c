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
//  1. `starts` has 0, every piece's first granule, `count`, and nothing else.
//  2. `frees` has the first and the last granule of each free piece, and
//     nothing else: whether the piece before another one is free is one bit.
//  3. No two free pieces are neighbours; in a buddy heap, no two buddies.
//  4. live_length is that of the live pieces.
//  5. The strategy knows exactly the free pieces.
//
// Steps of one call at most, for TLSF and buddy. A search S in `starts` reads
// 11 words; a change of `starts` counts 1 and up to 4 levels above, together 5;
// one of `frees`, which has no summaries for them, 1. A list takes 2 to insert,
// 3 to remove, 2 + S to find. So a free piece costs 2 + 2 = 4 to make, 2 + 3 =
// 5 to unmake, and 5 more when its start goes from `starts` or comes there.
//
//   TLSF   take     find 13, unmake 5, make what is before an aligned block and
//                   what is behind it 2 * (4 + 5)                          = 36
//          free     own length S (in private_heap.c), both neighbours
//                   2 * (S + 5 + 5), make 4                                = 57
//          realloc  that moves: length behind S, take, free               = 104
//   buddy  take     find 13, unmake 5, 31 halves 1 + 4 + 5                = 328
//          free     S, 31 buddies 1 + S + 5 + 5, make 4                   = 697
//          realloc  that moves: pieces behind, 31 that get longer and 31 that
//                   get shorter, S each, take, free                      = 1707
//
// A pointer that is none costs one S more, and nothing is done then. Memory
// added in between is not counted: the kernel promises no time for it.

#include "heap/piece.h"

#include <assert.h>

#include "heap/fatal.h"
#include "heap/fit_list.h"
#include "heap/private_memory.h"

enum {
  // Told anew so often, and broken again: some thread goes on writing.
  REBUILDS_MAX = 8,
};

static_assert(HEAP_BIT_TREE_SEARCH_STEPS == 11 && HEAP_BIT_TREE_LEVELS == 6,
              "the steps above");
static_assert(36 + 57 + 11 <= HEAP_TLSF_STEPS_MAX, "the steps above");
static_assert(328 + 697 + 62 * 11 <= HEAP_BUDDY_STEPS_MAX, "the steps above");

static bool tell_all(heap_t *heap) {
  heap->fit->reset(heap);
  uint32_t start = heap_fit_next_free(heap, 0);
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    if (!heap->fit->insert(heap, start, length)) {
      return false;
    }
    start = heap_fit_next_free(heap, start + length);
  }
  return true;
}

// Tells the strategy all pieces anew, since one near `start` was overwritten.
static void rebuild(heap_t *heap, uint32_t start) {
  heap_fit_note_broken(heap, start);
  for (int tries = 0; tries < REBUILDS_MAX; ++tries) {
    if (tell_all(heap)) {
      return;
    }
  }
  HEAP_DIE("private heap: free blocks are written to all the time");
}

// Lists are inline here: each alloc and free changes some.
static inline bool insert(heap_t *heap, uint32_t start, uint32_t length) {
  return heap->has_lists
             ? heap_fit_list_push(heap, heap_fit_list_of(heap, length), start)
             : heap->fit->insert(heap, start, length);
}

static inline bool remove_from_fit(heap_t *heap, uint32_t start,
                                   uint32_t length) {
  return heap->has_lists
             ? heap_fit_list_remove(heap, heap_fit_list_of(heap, length), start)
             : heap->fit->remove(heap, start, length);
}

// A piece, whose start is in `starts`, becomes free.
static inline void make_free(heap_t *heap, uint32_t start, uint32_t length) {
  heap->steps += 4;
  heap_bit_tree_add(&heap->frees, start);
  heap_bit_tree_add(&heap->frees, start + length - 1);
  if (!insert(heap, start, length)) {
    rebuild(heap, start);
  }
}

// The same for granules that are no piece yet.
static inline void add_free(heap_t *heap, uint32_t start, uint32_t length) {
  ++heap->steps;
  heap_bit_tree_add(&heap->starts, start);
  make_free(heap, start, length);
}

// The free piece is none any more; its start stays in `starts`.
static inline void unmake_free(heap_t *heap, uint32_t start, uint32_t length) {
  heap->steps += 5;
  for (int tries = 0; !remove_from_fit(heap, start, length); ++tries) {
    if (tries == REBUILDS_MAX) {
      HEAP_DIE("private heap: free blocks are written to all the time");
    }
    rebuild(heap, start);
  }
  heap_bit_tree_remove(&heap->frees, start);
  heap_bit_tree_remove(&heap->frees, start + length - 1);
}

// The same, and its start goes, too.
static inline void remove_free(heap_t *heap, uint32_t start, uint32_t length) {
  ++heap->steps;
  unmake_free(heap, start, length);
  heap_bit_tree_remove(&heap->starts, start);
}

static uint32_t find(heap_t *heap, uint32_t length, size_t align_bytes,
                     uint32_t *out_piece_length) {
  uint32_t start = heap->fit->find(heap, length, align_bytes, out_piece_length);
  for (int tries = 0; start == HEAP_FIT_BROKEN; ++tries) {
    if (tries == REBUILDS_MAX) {
      HEAP_DIE("private heap: free blocks are written to all the time");
    }
    rebuild(heap, HEAP_FIT_NONE - 1);
    start = heap->fit->find(heap, length, align_bytes, out_piece_length);
  }
  return start;
}

// Adds memory, `missing` granules at least, at the end of the heap.
static bool extend(heap_t *heap, uint32_t missing) {
  uint64_t steps = heap->steps;
  bool is_done = heap_private_extend(heap, missing);
  heap->steps = steps;
  return is_done;
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

// Tells whether the piece at `buddy` is free and `length` long.
static bool is_free_buddy(const heap_t *heap, uint32_t buddy, uint32_t length) {
  return buddy < heap->count && length <= heap->count - buddy &&
         heap_bit_tree_has(&heap->starts, buddy) &&
         heap_bit_tree_has(&heap->frees, buddy) &&
         heap_fit_length(heap, buddy) == length;
}

// Makes a piece, whose start is in `starts`, free, joined with its buddy, and
// that one's, as far as it goes.
static void buddy_free(heap_t *heap, uint32_t start, uint32_t length) {
  while (is_free_buddy(heap, start ^ length, length)) {
    heap->steps += 2;
    unmake_free(heap, start ^ length, length);
    heap_bit_tree_remove(&heap->starts, start | length);
    start &= ~length;
    length *= 2;
  }
  make_free(heap, start, length);
}

// Makes more memory usable behind a piece that all up to the end of the heap is
// free behind, as much as it needs to become `wanted` long. What is free then
// is its buddies: it lies at a multiple of `wanted`, so no other is as long.
static bool buddy_extend(heap_t *heap, uint32_t start, uint32_t length,
                         uint32_t wanted) {
  for (uint32_t at = start + length; at < heap->count;
       at += heap_fit_length(heap, at)) {
    if (!heap_bit_tree_has(&heap->frees, at)) {
      return false;
    }
  }
  return extend(heap, wanted - (heap->count - start));
}

// Makes sure that a piece can become `wanted` long by taking in buddies.
static bool buddy_can_grow(heap_t *heap, uint32_t start, uint32_t length,
                           uint32_t wanted) {
  if ((start & (wanted - 1)) != 0 || wanted > heap->capacity - start) {
    return false;
  }
  if (wanted > heap->count - start) {
    return buddy_extend(heap, start, length, wanted);
  }
  for (; length < wanted; length *= 2) {
    if (!is_free_buddy(heap, start + length, length)) {
      return false;
    }
  }
  return true;
}

static bool buddy_resize(heap_t *heap, uint32_t start, uint32_t length,
                         uint32_t wanted) {
  uint32_t order = heap_fit_order(wanted);
  if (order == 32 ||
      !buddy_can_grow(heap, start, length, UINT32_C(1) << order)) {
    return false;
  }
  heap->live_length -= length;
  for (; length < wanted; length *= 2) {
    ++heap->steps;
    remove_free(heap, start + length, length);
  }
  heap_piece_note_live(heap, buddy_cut(heap, start, length, wanted));
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

// Returns the length of the piece at `end`, which may be the heap's end; 0: it
// is not free.
static uint32_t free_length(const heap_t *heap, uint32_t end) {
  return heap_bit_tree_has(&heap->frees, end) ? heap_fit_length(heap, end) : 0;
}

// Makes a piece, whose start is in `starts`, free, joined with its free
// neighbours.
void heap_piece_join(heap_t *heap, uint32_t start, uint32_t length) {
  uint32_t behind = free_length(heap, start + length);
  if (behind != 0) {
    remove_free(heap, start + length, behind);
    length += behind;
  }
  if (start > 0 && heap_bit_tree_has(&heap->frees, start - 1)) {
    heap->steps += 2;
    uint32_t before = heap_bit_tree_prev(&heap->starts, start - 1);
    unmake_free(heap, before, start - before);
    heap_bit_tree_remove(&heap->starts, start);
    length += start - before;
    start = before;
  }
  make_free(heap, start, length);
}

static bool join_resize(heap_t *heap, uint32_t start, uint32_t length,
                        uint32_t wanted) {
  uint32_t end = start + length;
  uint32_t behind = free_length(heap, end);
  if (wanted > length + behind) {
    if (end + behind != heap->count ||
        !extend(heap, wanted - length - behind)) {
      return false;
    }
    behind = heap->count - end;
  }
  uint32_t both = length + behind;
  // A block never takes what it did not ask for from a free one, unless that is
  // too short to be split off.
  if (wanted == length ||
      (wanted < length && both - wanted < heap->split_length)) {
    return true;
  }
  if (behind != 0) {
    remove_free(heap, end, behind);
  }
  heap->live_length -= length;
  heap_piece_note_live(heap, cut(heap, start, both, wanted));
  return true;
}

uint32_t heap_piece_take(heap_t *heap, uint32_t length, size_t align_bytes) {
  uint32_t piece_length = 0;
  uint32_t piece = find(heap, length, align_bytes, &piece_length);
  if (piece == HEAP_FIT_NONE) {
    return HEAP_FIT_NONE;
  }
  unmake_free(heap, piece, piece_length);
  uint32_t start = piece;
  if (heap->is_buddy) {
    uint32_t align_length = (uint32_t)(align_bytes >> heap->granule_shift);
    piece_length = buddy_cut(heap, piece, piece_length,
                             length > align_length ? length : align_length);
  } else {
    start = (uint32_t)heap_fit_align(heap, piece, align_bytes);
    if (start > piece) {
      ++heap->steps;
      make_free(heap, piece, start - piece);
      heap_bit_tree_add(&heap->starts, start);
    }
    piece_length = cut(heap, start, piece_length - (start - piece), length);
  }
  heap_piece_note_live(heap, piece_length);
  heap->rover = start + piece_length;
  return start;
}

void heap_piece_free(heap_t *heap, uint32_t start, uint32_t length) {
  heap->live_length -= length;
  if (heap->is_buddy) {
    buddy_free(heap, start, length);
  } else {
    heap_piece_join(heap, start, length);
  }
}

bool heap_piece_resize(heap_t *heap, uint32_t start, uint32_t length,
                       uint32_t wanted) {
  return heap->is_buddy ? buddy_resize(heap, start, length, wanted)
                        : join_resize(heap, start, length, wanted);
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
  heap_piece_join(heap, start, length);
}

void heap_piece_free_all(heap_t *heap) {
  uint32_t count = heap->count;
  heap_bit_tree_clear(&heap->starts, count + 1);
  heap_bit_tree_clear(&heap->frees, count + 1);
  heap->fit->reset(heap);
  heap->live_length = 0;
  heap->rover = 0;
  heap->count = 0;
  heap_bit_tree_add(&heap->starts, 0);
  if (count > 0) {
    heap_piece_append(heap, count);
  }
}

static uint32_t count_bits(const heap_bit_tree_t *tree, uint32_t end) {
  uint32_t bits = 0;
  for (uint32_t word = 0; word <= (end - 1) / 64; ++word) {
    bits += (uint32_t)__builtin_popcountll(tree->levels[0][word]);
  }
  return bits;
}

uint32_t heap_piece_count(const heap_t *heap) {
  return count_bits(&heap->starts, heap->count + 1) - 1;
}

static const char *check_pieces(heap_t *heap) {
  uint32_t live_length = 0;
  uint32_t free_bits = 0;
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
    if (is_free && !heap_bit_tree_has(&heap->frees, start + length - 1)) {
      return "private heap: a free piece without its end";
    }
    free_bits += is_free ? 1 + (length > 1) : 0;
    live_length += is_free ? 0 : length;
    was_free = is_free;
    start += length;
  }
  if (free_bits != count_bits(&heap->frees, heap->count + 1)) {
    return "private heap: a free piece that is none";
  }
  return live_length == heap->live_length
             ? NULL
             : "private heap: live pieces are not counted right";
}

const char *heap_piece_check(heap_t *heap) {
  if (!heap_bit_tree_is_sound(&heap->starts, heap->count + 1) ||
      !heap_bit_tree_is_sound(&heap->frees, heap->count)) {
    return "private heap: a bitmap whose summary is wrong";
  }
  const char *broken = check_pieces(heap);
  broken = broken != NULL ? broken : heap->fit->check(heap);
  heap->broken_at = HEAP_FIT_NONE;  // What is returned is the report.
  return broken;
}
