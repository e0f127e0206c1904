// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The engine of the default heap on one range of memory, with one owner of all
// spans: whoever has the heap's lock. What a default heap has for the sake of
// threads (foreign frees, orphans) is not there; what a small heap has no room
// for is scaled (size_class.h: shapes). From a heap of n bytes follow
//
//   page    n / 256, from 1 KiB to 64 KiB: a span is one or two
//   unit    a quarter of that, at most 1 KiB: large blocks are runs of them
//   small   blocks of up to half a page
//
//   | heap_t, this | bins | spans | slots | pages | states | ... | tags |
//     fixed ------------------------------  grow with the memory -------
//
// A span's states need no allocator: they are in an area, a byte for each 2^s
// bytes of the heap, at the place that is the span's. There are areas for s of
// 4, 5, 6 and 8, and a span has its states in the last one whose share is no
// longer than its blocks, so that hardly more than a byte a block is touched.
//
// Whatever a large block may have become, the default heap's rule for what a
// block that is resized becomes holds, but that there are no mappings.
//
// Invariants, besides those of bin.c and run_map.c:
//  1. The runs of kind SPAN are those that the descriptors of their pages say,
//     and all other descriptors say nothing.
//  2. live_count and live_length are those of the live blocks.
//  3. The tables are usable for `count` granules.
//  4. frees_to_go of a span that is not full is the number of its blocks that
//     are live, cached or reserved, and in one that is full no block is free:
//     nobody else frees. So a call in need knows what is empty without reading
//     states.

#include "heap/segregated.h"

#include <assert.h>
#include <string.h>

#include "heap/fatal.h"
#include "heap/kernel.h"
#include "heap/private_memory.h"

enum {
  SPANS_OF_A_HEAP = 256,  // As many of the shortest kind should fit.
  UNIT_MAX_SHIFT = 10,
  UNITS_OF_A_PAGE_SHIFT = 2,  // At least.
  TABLE_ALIGN_BYTES = 64,
  GRANULE_SHIFT = HEAP_SEGREGATED_GRANULE_SHIFT,
  // Steps: words of a group's states; and of a run that is made or joined.
  GROUP_STEPS = 8,
  RUN_STEPS = 4,
};

// How many bytes of the heap a state in each area stands for.
static const uint8_t area_shifts[HEAP_SEGREGATED_AREAS] = {4, 5, 6, 8};

static_assert(1 << UNITS_OF_A_PAGE_SHIFT == HEAP_RUN_MIN_UNITS,
              "no run is shorter than a page");
static_assert(HEAP_SEGREGATED_SPAN_MIN_BYTES >> 4 == HEAP_GROUP_BLOCKS,
              "the shortest span has a group of states in the first area");
static_assert(1 << GRANULE_SHIFT == HEAP_CLASS_QUANTUM_BYTES, "all are");

// Where the tables are, from the heap_t on.
typedef struct layout {
  size_t own;
  size_t bins;
  size_t spans;
  size_t slots;
  size_t fixed_end;
  size_t pages;
  size_t areas[HEAP_SEGREGATED_AREAS];
  size_t tags;
  size_t end;
} layout_t;

static uint32_t page_shift_of(size_t span_bytes) {
  return (uint32_t)__builtin_ctzll(span_bytes);
}

static uint32_t unit_shift_of(size_t span_bytes) {
  uint32_t shift = page_shift_of(span_bytes) - UNITS_OF_A_PAGE_SHIFT;
  return shift < UNIT_MAX_SHIFT ? shift : UNIT_MAX_SHIFT;
}

static size_t class_count_of(size_t span_bytes) {
  return heap_class_of_size(span_bytes / 2) + 1;
}

// Tells whether the area has a group of states for a page.
static bool has_area(size_t span_bytes, size_t area) {
  return span_bytes >> area_shifts[area] >= HEAP_GROUP_BLOCKS;
}

// Returns the bytes of each growing table for so much memory: `table` 0 is the
// pages', then come the areas, and the tags.
static size_t table_bytes(size_t span_bytes, size_t memory_bytes,
                          size_t table) {
  size_t pages = (memory_bytes + span_bytes - 1) >> page_shift_of(span_bytes);
  if (table == 0) {
    return pages * sizeof(heap_page_t);
  }
  if (table <= HEAP_SEGREGATED_AREAS) {
    return has_area(span_bytes, table - 1)
               ? pages * (span_bytes >> area_shifts[table - 1])
               : 0;
  }
  return (memory_bytes >> unit_shift_of(span_bytes)) * sizeof(uint32_t);
}

// Takes memory for a table off the end.
static size_t place(size_t *end, size_t size_bytes, size_t align_bytes) {
  size_t start = heap_fit_round_up(*end, align_bytes);
  *end = start + size_bytes;
  return start;
}

static layout_t lay_out(size_t span_bytes, uint32_t capacity,
                        size_t align_bytes) {
  size_t memory_bytes = (size_t)capacity << GRANULE_SHIFT;
  size_t class_count = class_count_of(span_bytes);
  size_t shape = HEAP_PAGE_SHIFT - page_shift_of(span_bytes);
  size_t slots = heap_bins_slot_count(shape, class_count);
  layout_t at;
  size_t end = offsetof(struct heap, list_bits);
  at.own = place(&end, sizeof(heap_segregated_t), TABLE_ALIGN_BYTES);
  at.bins = place(&end, class_count * sizeof(heap_bin_t), TABLE_ALIGN_BYTES);
  at.spans = place(&end, class_count * sizeof(heap_class_spans_t), 8);
  at.slots = place(&end, slots * sizeof(heap_slot_t), 8);
  at.fixed_end = end;
  at.pages = place(&end, table_bytes(span_bytes, memory_bytes, 0), align_bytes);
  for (size_t i = 0; i < HEAP_SEGREGATED_AREAS; ++i) {
    at.areas[i] =
        place(&end, table_bytes(span_bytes, memory_bytes, 1 + i), align_bytes);
  }
  at.tags = place(
      &end, table_bytes(span_bytes, memory_bytes, 1 + HEAP_SEGREGATED_AREAS),
      align_bytes);
  at.end = end;
  return at;
}

size_t heap_segregated_span_bytes(size_t size_bytes) {
  size_t span_bytes = HEAP_PAGE_BYTES;
  while (span_bytes > HEAP_SEGREGATED_SPAN_MIN_BYTES &&
         span_bytes > size_bytes / SPANS_OF_A_HEAP) {
    span_bytes /= 2;
  }
  return span_bytes;
}

size_t heap_segregated_unit_bytes_of(size_t span_bytes) {
  return (size_t)1 << unit_shift_of(span_bytes);
}

size_t heap_segregated_tables_bytes(size_t span_bytes, uint32_t capacity,
                                    size_t align_bytes,
                                    size_t *out_fixed_bytes) {
  layout_t at = lay_out(span_bytes, capacity, align_bytes);
  if (out_fixed_bytes != NULL) {
    *out_fixed_bytes = at.fixed_end;
  }
  return at.end;
}

// Makes all classes' bins and spans empty.
static void empty_classes(heap_segregated_t *own, heap_slot_t *slots) {
  heap_bins_init(own->bins, slots, own->shape, own->class_count);
  memset(own->spans, 0, own->class_count * sizeof(*own->spans));
}

void heap_segregated_init(heap_t *heap, size_t span_bytes, size_t align_bytes,
                          bool is_zeroed) {
  unsigned char *tables = (unsigned char *)heap;
  layout_t at = lay_out(span_bytes, heap->capacity, align_bytes);
  heap_segregated_t *own = (heap_segregated_t *)(void *)(tables + at.own);
  heap->segregated = own;
  own->page_shift = page_shift_of(span_bytes);
  own->unit_shift = unit_shift_of(span_bytes);
  own->shape = HEAP_PAGE_SHIFT - own->page_shift;
  own->class_count = (uint32_t)class_count_of(span_bytes);
  own->small_max_bytes = span_bytes / 2;
  own->table_max_bytes = own->small_max_bytes < HEAP_TABLE_MAX_BYTES
                             ? own->small_max_bytes
                             : HEAP_TABLE_MAX_BYTES;
  own->is_kernels = is_zeroed;
  own->bins = (heap_bin_t *)(void *)(tables + at.bins);
  own->spans = (heap_class_spans_t *)(void *)(tables + at.spans);
  own->pages = (heap_page_t *)(void *)(tables + at.pages);
  for (size_t i = 0; i < HEAP_SEGREGATED_AREAS; ++i) {
    own->states[i] = has_area(span_bytes, i) ? tables + at.areas[i] : NULL;
  }
  own->map.tags = (uint32_t *)(void *)(tables + at.tags);
  own->map.tag_capacity =
      heap->capacity >> (own->unit_shift - HEAP_SEGREGATED_GRANULE_SHIFT);
  empty_classes(own, (heap_slot_t *)(void *)(tables + at.slots));
}

bool heap_segregated_cover(heap_t *heap, uint32_t count) {
  const heap_segregated_t *own = heap->segregated;
  const void *const starts[] = {own->pages,     own->states[0], own->states[1],
                                own->states[2], own->states[3], own->map.tags};
  size_t span_bytes = (size_t)1 << own->page_shift;
  for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); ++i) {
    size_t used_bytes =
        table_bytes(span_bytes, (size_t)heap->count << GRANULE_SHIFT, i);
    size_t size_bytes =
        table_bytes(span_bytes, (size_t)count << GRANULE_SHIFT, i);
    used_bytes = heap_fit_round_up(used_bytes, heap->page_bytes);
    size_bytes = heap_fit_round_up(size_bytes, heap->page_bytes);
    if (used_bytes < size_bytes &&
        !heap_kernel->commit((void *)((uintptr_t)starts[i] + used_bytes),
                             size_bytes - used_bytes)) {
      return false;
    }
  }
  return true;
}

void heap_segregated_append(heap_t *heap, uint32_t length) {
  heap_segregated_t *own = heap->segregated;
  heap->count += length;
  heap_run_map_append(&own->map, length >> (own->unit_shift - GRANULE_SHIFT),
                      HEAP_RUN_FREE);
}

static void *address_of(const heap_t *heap, uint32_t unit) {
  return (void *)(heap->base +
                  ((uintptr_t)unit << heap->segregated->unit_shift));
}

static uint32_t unit_of(const heap_t *heap, const void *ptr) {
  return (uint32_t)(((uintptr_t)ptr - heap->base) >>
                    heap->segregated->unit_shift);
}

static uint32_t units_of_page(const heap_segregated_t *own) {
  return UINT32_C(1) << (own->page_shift - own->unit_shift);
}

// Returns the units of a block, or 0: more than there can be.
static uint32_t units_of(const heap_segregated_t *own, size_t size_bytes) {
  size_t unit_bytes = heap_segregated_unit_bytes(own);
  size_t units = size_bytes / unit_bytes + (size_bytes % unit_bytes != 0);
  if (units > own->map.tag_capacity) {
    return 0;
  }
  return units < HEAP_RUN_MIN_UNITS ? HEAP_RUN_MIN_UNITS : (uint32_t)units;
}

// Makes more memory usable, `missing` units at least.
static bool extend(heap_t *heap, uint64_t missing) {
  const heap_segregated_t *own = heap->segregated;
  uint64_t left = own->map.tag_capacity - own->map.unit_count;
  return missing <= left &&
         heap_private_extend(
             heap, (size_t)missing << (own->unit_shift - GRANULE_SHIFT));
}

// Adds what is missing behind the last run for one like that.
static bool grow(heap_t *heap, uint32_t units, uint64_t bias, uint64_t align) {
  const heap_run_map_t *map = &heap->segregated->map;
  heap_run_t last = heap_run_map_last_free(map);
  uint64_t start = last.units != 0 ? last.start : map->unit_count;
  uint64_t skip = (0 - (bias + start)) & (align - 1);
  uint64_t end;
  if (__builtin_add_overflow(start + units, skip, &end)) {
    return false;
  }
  // It may be there but was not looked at: a unit more.
  return extend(heap, end > map->unit_count ? end - map->unit_count : 1);
}

// Notes that a run was handed out; tells whether it is all zero.
static bool note_use(heap_segregated_t *own, heap_run_t run) {
  bool is_zeroed = own->is_kernels && run.start >= own->fresh_unit;
  if (run.start + run.units > own->fresh_unit) {
    own->fresh_unit = run.start + run.units;
  }
  return is_zeroed;
}

// Returns the first unit of a new run, or HEAP_RUN_NONE.
static uint32_t take_units(heap_t *heap, uint32_t units, uint64_t bias,
                           uint64_t align, heap_run_kind_t kind,
                           bool *out_zeroed) {
  heap_segregated_t *own = heap->segregated;
  uint64_t looked_at = own->map.looked_at;
  uint32_t unit = heap_run_map_alloc(&own->map, units, bias, align, kind);
  if (unit == HEAP_RUN_NONE && grow(heap, units, bias, align)) {
    unit = heap_run_map_alloc(&own->map, units, bias, align, kind);
  }
  if (unit == HEAP_RUN_NONE && units <= own->map.free_units) {
    unit = heap_run_map_alloc_in_need(&own->map, units, bias, align, kind);
  }
  heap->steps += own->map.looked_at - looked_at + RUN_STEPS;
  if (unit != HEAP_RUN_NONE) {
    *out_zeroed = note_use(own, heap_run_map_find(&own->map, unit));
  }
  return unit;
}

static void free_units(heap_t *heap, uint32_t unit) {
  heap->steps += RUN_STEPS;
  heap_run_map_free(&heap->segregated->map, unit);
}

// Spans.

// Returns where the states of a span of the class at `start` are.
static uint8_t *states_at(const heap_t *heap, const heap_class_info_t *info,
                          uintptr_t start) {
  const heap_segregated_t *own = heap->segregated;
  size_t span_bytes = (size_t)info->page_count << own->page_shift;
  size_t states = heap_class_group_count(info) * HEAP_GROUP_BLOCKS;
  size_t area = HEAP_SEGREGATED_AREAS - 1;
  while (own->states[area] == NULL ||
         span_bytes >> area_shifts[area] < states) {
    HEAP_ASSERT(area > 0);
    --area;
  }
  return own->states[area] + ((start - heap->base) >> area_shifts[area]);
}

static heap_page_t *span_create(heap_t *heap, size_t size_class) {
  const heap_segregated_t *own = heap->segregated;
  const heap_class_info_t *info = heap_class_info_in(own->shape, size_class);
  bool zeroed = false;
  uint32_t unit = take_units(heap, info->page_count * units_of_page(own), 0,
                             units_of_page(own), HEAP_RUN_SPAN, &zeroed);
  if (unit == HEAP_RUN_NONE) {
    return NULL;
  }
  uintptr_t start = (uintptr_t)address_of(heap, unit);
  uint8_t *states = states_at(heap, info, start);
  uint32_t groups = heap_class_group_count(info);
  heap_page_t *first = &own->pages[(start - heap->base) >> own->page_shift];
  heap->steps += (uint64_t)groups * GROUP_STEPS;
  heap_span_state_init(states, info, zeroed);
  for (size_t i = 0; i < info->page_count; ++i) {
    HEAP_ASSERT(first[i].kind == HEAP_PAGE_NONE);
    first[i] = (heap_page_t){
        .start = start,
        .states = states,
        .reciprocal = info->reciprocal,
        .kind = HEAP_PAGE_SPAN,
        .size_class = (uint8_t)size_class,
        .bin_offset = (uint16_t)(size_class * HEAP_BIN_BYTES),
        .index = i & 1,
        .shape = own->shape & 15,
    };
  }
  first->free_groups = ~UINT64_C(0) >> (64 - groups);
  return first;
}

// Gives back a span without live blocks, on no list.
static void span_destroy(heap_t *heap, heap_page_t *page) {
  HEAP_ASSERT(heap_span_recount(page) == 0);
  uint32_t unit = unit_of(heap, (void *)page->start);
  memset(page, 0, heap_span_info(page)->page_count * sizeof(*page));
  free_units(heap, unit);
}

// A small block's bin was full, so its span has it.
static void note_freed(heap_t *heap, heap_page_t *page, uint8_t *state) {
  heap_segregated_t *own = heap->segregated;
  heap_page_t *span = page - page->index;
  size_t size_class = span->size_class;
  ++heap->steps;
  if (heap_span_note_freed(span, state) &&
      heap_class_spans_freed(&own->spans[size_class], &own->bins[size_class],
                             span)) {
    span_destroy(heap, span);
  }
}

// Makes what all bins hold their spans', and spans without live blocks free
// runs. True: some.
static bool settle(heap_t *heap) {
  heap_segregated_t *own = heap->segregated;
  uint32_t free_before = own->map.free_units;
  for (size_t i = 0; i < own->class_count; ++i) {
    heap_bin_t *bin = &own->bins[i];
    heap_page_t *empty = heap_bin_return_group(bin, &own->spans[i]);
    ++heap->steps;
    if (empty != NULL) {
      span_destroy(heap, empty);
    }
    for (; bin->top->ptr != NULL; --bin->top) {
      const heap_slot_t *slot = bin->top;
      uintptr_t offset = (uintptr_t)slot->ptr - heap->base;
      *slot->state = HEAP_BLOCK_FREED;
      note_freed(heap, &own->pages[offset >> own->page_shift], slot->state);
    }
  }
  return own->map.free_units != free_before;
}

// Blocks.

static void *take_small(heap_t *heap, size_t size_class, bool *out_zeroed) {
  heap_segregated_t *own = heap->segregated;
  heap_class_spans_t *spans = &own->spans[size_class];
  heap_bin_t *bin = &own->bins[size_class];
  void *ptr = heap_bin_pop(bin);
  *out_zeroed = false;
  while (ptr == NULL && bin->mask == 0 && !heap_bin_refill(bin, spans)) {
    heap_page_t *page = span_create(heap, size_class);
    if (page == NULL) {
      return NULL;
    }
    heap_class_spans_set_current(spans, page);
  }
  if (ptr == NULL) {
    heap->steps += GROUP_STEPS;
    ptr = heap_bin_take(bin, out_zeroed);
  }
  ++heap->steps;
  ++heap->live_count;
  heap_piece_note_live(heap, bin->block_bytes >> GRANULE_SHIFT);
  return ptr;
}

static void *take_run(heap_t *heap, size_t align_bytes, size_t size_bytes,
                      bool *out_zeroed) {
  heap_segregated_t *own = heap->segregated;
  uint32_t units = units_of(own, size_bytes);
  uint64_t align = align_bytes >> own->unit_shift;
  if (units == 0) {
    return NULL;
  }
  uint32_t unit =
      take_units(heap, units, heap->base >> own->unit_shift,
                 align == 0 ? 1 : align, HEAP_RUN_BLOCK, out_zeroed);
  if (unit == HEAP_RUN_NONE) {
    return NULL;
  }
  ++heap->live_count;
  heap_piece_note_live(heap, units << (own->unit_shift - GRANULE_SHIFT));
  return address_of(heap, unit);
}

// Returns the smallest class whose blocks all start at multiples of
// `align_bytes`, or class_count.
static size_t aligned_class(const heap_t *heap, size_t align_bytes,
                            size_t size_bytes) {
  const heap_segregated_t *own = heap->segregated;
  if (size_bytes > own->small_max_bytes ||
      align_bytes > heap->base_align_bytes) {
    return own->class_count;
  }
  size_t size_class = heap_class_of_size(size_bytes);
  while (size_class < own->class_count &&
         (heap_class_info[size_class].size_bytes & (align_bytes - 1)) != 0) {
    ++size_class;
  }
  return size_class;
}

static void *try_take(heap_t *heap, size_t align_bytes, size_t size_bytes,
                      bool *out_zeroed) {
  size_t size_class = aligned_class(heap, align_bytes, size_bytes);
  return size_class < heap->segregated->class_count
             ? take_small(heap, size_class, out_zeroed)
             : take_run(heap, align_bytes, size_bytes, out_zeroed);
}

// Returns how much is not live, of what there can be.
static size_t room_bytes(const heap_t *heap) {
  return (size_t)(heap->capacity - heap->live_length) << GRANULE_SHIFT;
}

// Tells whether a block that is resized to so much had better be a run.
static bool is_run_size(const heap_segregated_t *own, size_t size_bytes) {
  return size_bytes > (size_t)HEAP_TABLE_MAX_BYTES >> own->shape;
}

void *heap_segregated_take(heap_t *heap, size_t align_bytes, size_t size_bytes,
                           bool is_growing, bool *out_zeroed) {
  heap_segregated_t *own = heap->segregated;
  void *ptr = NULL;
  *out_zeroed = false;
  if (is_growing && is_run_size(own, size_bytes)) {
    ptr = take_run(heap, align_bytes, size_bytes, out_zeroed);
  }
  if (ptr == NULL) {
    ptr = try_take(heap, align_bytes, size_bytes, out_zeroed);
  }
  // What there is no room for empties no bins.
  if (ptr == NULL && size_bytes <= room_bytes(heap) && settle(heap)) {
    ptr = try_take(heap, align_bytes, size_bytes, out_zeroed);
  }
  if (ptr == NULL && size_bytes <= own->small_max_bytes) {
    // A span must start at a page; a run may fit where none does.
    ptr = take_run(heap, align_bytes, size_bytes, out_zeroed);
  }
  return ptr;
}

heap_segregated_block_t heap_segregated_locate_run(heap_t *heap,
                                                   const void *ptr) {
  const heap_segregated_t *own = heap->segregated;
  uint32_t unit = unit_of(heap, ptr);
  uint32_t tag = own->map.tags[unit];
  ++heap->steps;
  if (address_of(heap, unit) != ptr ||
      heap_run_tag_kind(tag) != HEAP_RUN_BLOCK) {
    return (heap_segregated_block_t){0};
  }
  return (heap_segregated_block_t){.size_bytes = (size_t)heap_run_tag_value(tag)
                                                 << own->unit_shift};
}

void heap_segregated_give(heap_t *heap, void *ptr,
                          const heap_segregated_block_t *block) {
  --heap->live_count;
  heap->live_length -= (uint32_t)(block->size_bytes >> GRANULE_SHIFT);
  ++heap->steps;
  if (block->page == NULL) {
    free_units(heap, unit_of(heap, ptr));
    return;
  }
  heap_bin_t *bin =
      heap_segregated_bin(heap->segregated, block->page->bin_offset);
  if (!heap_bin_put(bin, ptr, block->state)) {
    note_freed(heap, block->page, block->state);
  }
}

// Adds memory behind the run, as much as it needs to have `units`. False: there
// is something behind it, or no memory.
static bool extend_run(heap_t *heap, heap_run_t run, uint32_t units) {
  const heap_run_map_t *map = &heap->segregated->map;
  heap_run_t last = heap_run_map_last_free(map);
  return run.start + run.units + last.units == map->unit_count &&
         extend(heap, (uint64_t)units - run.units - last.units);
}

static bool resize_run(heap_t *heap, void *ptr, size_t size_bytes) {
  heap_segregated_t *own = heap->segregated;
  uint32_t unit = unit_of(heap, ptr);
  uint32_t units = units_of(own, size_bytes);
  heap_run_t run = heap_run_map_find(&own->map, unit);
  heap->steps += RUN_STEPS;
  if (units == 0 || (!heap_run_map_resize(&own->map, unit, units) &&
                     (!extend_run(heap, run, units) ||
                      !heap_run_map_resize(&own->map, unit, units)))) {
    return false;
  }
  run.units = units;
  note_use(own, run);
  return true;
}

bool heap_segregated_resize(heap_t *heap, void *ptr,
                            const heap_segregated_block_t *block,
                            size_t size_bytes, bool in_need) {
  const heap_segregated_t *own = heap->segregated;
  if (block->page != NULL) {
    return size_bytes <= block->size_bytes &&
           (in_need || heap_class_keeps(block->size_bytes, size_bytes));
  }
  if ((!in_need && !is_run_size(own, size_bytes)) ||
      !resize_run(heap, ptr, size_bytes)) {
    return false;
  }
  uint32_t unit = unit_of(heap, ptr);
  size_t new_bytes = (size_t)heap_run_map_find(&own->map, unit).units
                     << own->unit_shift;
  heap->live_length -= (uint32_t)(block->size_bytes >> GRANULE_SHIFT);
  heap_piece_note_live(heap, (uint32_t)(new_bytes >> GRANULE_SHIFT));
  return true;
}

void heap_segregated_reset(heap_t *heap) {
  heap_segregated_t *own = heap->segregated;
  heap_run_map_t *map = &own->map;
  uint32_t count = map->unit_count;
  // Behind what was handed out there is nothing but one run's tags.
  uint32_t end = own->fresh_unit + HEAP_RUN_MIN_UNITS;
  end = end < count ? end : count;
  memset(map->tags, 0, end * sizeof(*map->tags));
  if (count > 0) {
    map->tags[count - 1] = 0;
  }
  size_t used_bytes = (size_t)own->fresh_unit << own->unit_shift;
  memset(own->pages, 0,
         table_bytes((size_t)1 << own->page_shift, used_bytes, 0));
  memset(map->bins, 0, sizeof(map->bins));
  memset(map->bin_bitmap, 0, sizeof(map->bin_bitmap));
  map->unit_count = 0;
  map->free_units = 0;
  if (count > 0) {
    heap_run_map_append(map, count, HEAP_RUN_FREE);
  }
  heap_slot_t *slots = own->bins[0].limit - heap_bins_slot_count(own->shape, 1);
  empty_classes(own, slots + 1);
  heap->live_count = 0;
  heap->live_length = 0;
}

static bool discard(uintptr_t address, size_t size_bytes) {
  return heap_kernel->discard((void *)address, size_bytes);
}

// Gives back the kernel's pages in a free run.
static size_t trim_run(const heap_t *heap, heap_run_t run) {
  uintptr_t start = (uintptr_t)address_of(heap, run.start);
  uintptr_t end = (uintptr_t)address_of(heap, run.start + run.units);
  start = heap_fit_round_up(start, heap->page_bytes);
  end &= ~(uintptr_t)(heap->page_bytes - 1);
  return start < end && discard(start, end - start) ? end - start : 0;
}

size_t heap_segregated_trim(heap_t *heap) {
  heap_segregated_t *own = heap->segregated;
  size_t trimmed_bytes = 0;
  settle(heap);
  if (!own->is_kernels) {
    return 0;
  }
  for (uint32_t unit = 0; unit < own->map.unit_count;) {
    heap_run_t run = heap_run_map_find(&own->map, unit);
    if (run.kind == HEAP_RUN_FREE) {
      trimmed_bytes += trim_run(heap, run);
    } else if (run.kind == HEAP_RUN_SPAN) {
      size_t page = unit >> (own->page_shift - own->unit_shift);
      trimmed_bytes += heap_span_discard_idle(&own->pages[page], discard);
    }
    unit += run.units;
  }
  return trimmed_bytes;
}
