// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/recorder_extent.h"

#include <assert.h>
#include <string.h>

// Returns the index of the first range that ends after `address`.
static size_t find(const recorder_extent_t *set, uintptr_t address) {
  size_t low = 0;  // Ranges below `low` end at or before the address.
  size_t high = set->count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (set->ranges[middle].end <= address) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

static void insert(recorder_extent_t *set, size_t index,
                   recorder_range_t range) {
  if (set->count == RECORDER_EXTENT_CAPACITY) {
    set->num_dropped++;
    return;
  }
  memmove(&set->ranges[index + 1], &set->ranges[index],
          (set->count - index) * sizeof(range));
  set->ranges[index] = range;
  set->count++;
}

static void erase(recorder_extent_t *set, size_t index) {
  set->count--;
  memmove(&set->ranges[index], &set->ranges[index + 1],
          (set->count - index) * sizeof(set->ranges[0]));
}

void recorder_extent_add(recorder_extent_t *set, uintptr_t start,
                         uintptr_t end) {
  size_t index = find(set, start);
  bool meets_above = index < set->count && set->ranges[index].start == end;
  bool meets_below = index > 0 && set->ranges[index - 1].end == start;
  assert(index == set->count || set->ranges[index].start >= end);
  if (meets_above && meets_below) {
    set->ranges[index - 1].end = set->ranges[index].end;
    erase(set, index);
  } else if (meets_above) {
    set->ranges[index].start = start;
  } else if (meets_below) {
    set->ranges[index - 1].end = end;
  } else {
    insert(set, index, (recorder_range_t){start, end});
  }
}

void recorder_extent_remove(recorder_extent_t *set, uintptr_t start,
                            uintptr_t end) {
  size_t index = find(set, start);
  while (index < set->count && set->ranges[index].start < end) {
    recorder_range_t *range = &set->ranges[index];
    recorder_range_t above = {end, range->end};
    bool keeps_below = range->start < start;
    if (keeps_below) {
      range->end = start;
      index++;
    }
    if (above.end > above.start && keeps_below) {
      insert(set, index, above);
      return;
    }
    if (above.end > above.start) {
      range->start = end;
      return;
    }
    if (!keeps_below) {
      erase(set, index);
    }
  }
}
