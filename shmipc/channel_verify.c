// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The channels' part of the checker: ports that are attachments', and a ring
// whose records follow each other (SPSC), or whose cells are claimed in order,
// each by a port that has a note of it (MPMC).

#include <string.h>

#include "shmipc/block_internal.h"
#include "shmipc/channel_internal.h"

// What is wrong, where, and what is there.
typedef struct finding {
  const char *what;
  const void *where;
  uint64_t value;
} finding_t;

static uint64_t load(const uint64_t *word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static finding_t found(const char *what, const void *where, uint64_t value) {
  finding_t finding = {.what = what, .where = where, .value = value};
  return finding;
}

static const finding_t nothing = {.what = NULL};

static finding_t look_at_port(const shmipc_view_t *view, uint32_t index) {
  const uint64_t *where = &view->channel->ports[index].word;
  uint64_t word = load(where);
  uint32_t role = SHMIPC_PORT_ROLE(word);
  uint32_t owner = SHMIPC_PORT_OWNER(word);
  if (owner == 0) {
    return role == 0 ? nothing : found("port: free, with a role", where, word);
  }
  if (role != SHMIPC_SENDER && role != SHMIPC_RECEIVER) {
    return found("port: neither a sender's nor a receiver's", where, word);
  }
  if (view->kind == SHMIPC_SPSC && role != index + 1) {
    return found("port: at the wrong end", where, word);
  }
  return SHMIPC_OWNER_SLOT(owner) < view->region->num_slots
             ? nothing
             : found("port: its process is no slot", where, word);
}

static finding_t look_at_records(const shmipc_view_t *view) {
  const uint64_t *where = &view->channel->head;
  uint64_t head = load(where);
  if (head >= view->ring_bytes || head % SHMIPC_SPSC_UNIT != 0) {
    return found("ring: the receiver's place is none", where, head);
  }
  uint64_t offset = head;
  uint64_t left = view->ring_bytes;
  for (;;) {
    uint64_t place;
    size_t len;
    uint64_t next;
    where = shmipc_record_word(view, offset);
    int status = shmipc_spsc_record(view, offset, &place, &len, &next);
    if (status == -EAGAIN) {
      return nothing;
    }
    uint64_t bytes =
        next > offset ? next - offset : next + view->ring_bytes - offset;
    if (status < 0) {
      return found("ring: no message's length", where, load(where));
    }
    if (bytes >= left) {
      return found("ring: messages without end", where, load(where));
    }
    left -= bytes;
    offset = next;
  }
}

static finding_t look_at_cell(const shmipc_view_t *view, uint64_t index) {
  const shmipc_cell_t *cell = shmipc_cell_of(view, index);
  uint64_t word = load(&cell->word);
  uint32_t state = SHMIPC_CELL_STATE(word);
  uint32_t port = SHMIPC_CELL_PORT(word);
  if (state > SHMIPC_CELL_RETURNED) {
    return found("cell: in no state", cell, word);
  }
  if (state == SHMIPC_CELL_READY || state == SHMIPC_CELL_RETURNED) {
    uint32_t len = __atomic_load_n(&cell->len, __ATOMIC_RELAXED);
    if (len > view->message_bytes ||
        (view->is_fixed && len != view->message_bytes)) {
      return found("cell: no message's length", &cell->len, len);
    }
  }
  if (state != SHMIPC_CELL_WRITING && state != SHMIPC_CELL_READING) {
    return (word & 0xfffffff8u) == 0
               ? nothing
               : found("cell: nobody's, with a name", cell, word);
  }
  if (port >= view->max_ports) {
    return found("cell: its port is none", cell, word);
  }
  const shmipc_port_entry_t *entry = &view->channel->ports[port];
  uint64_t owner = load(&entry->word);
  uint32_t generation = SHMIPC_PORT_GENERATION(owner) & SHMIPC_CELL_GENERATIONS;
  uint32_t role =
      state == SHMIPC_CELL_WRITING ? SHMIPC_SENDER : SHMIPC_RECEIVER;
  if (SHMIPC_PORT_OWNER(owner) == 0 || SHMIPC_PORT_ROLE(owner) != role ||
      generation != SHMIPC_CELL_GENERATION(word)) {
    return found("cell: its port is nobody's", cell, word);
  }
  return ((load(&entry->note) - 1) & view->mask) == index
             ? nothing
             : found("cell: its port has no note of it", cell, word);
}

// The lap at which it can be claimed next.
static uint32_t next_lap(const shmipc_view_t *view, uint64_t index) {
  uint64_t word = load(&shmipc_cell_of(view, index)->word);
  return SHMIPC_CELL_LAP(word) + (SHMIPC_CELL_STATE(word) != SHMIPC_CELL_FREE);
}

static finding_t look_at_cells(const shmipc_view_t *view) {
  uint32_t first = next_lap(view, 0);
  uint32_t before = first;
  for (uint64_t i = 0; i <= view->mask; i++) {
    finding_t finding = look_at_cell(view, i);
    if (finding.what != NULL) {
      return finding;
    }
    uint32_t lap = next_lap(view, i);
    // Somewhere there may be a step down, of one.
    if (lap != before && (before != first || lap + 1 != first)) {
      return found("cell: claimed out of order", shmipc_cell_of(view, i), lap);
    }
    before = lap;
  }
  return nothing;
}

static finding_t look_at_view(const shmipc_view_t *view) {
  const uint32_t *is_shut = &view->channel->is_shut;
  uint32_t shut = __atomic_load_n(is_shut, __ATOMIC_RELAXED);
  if (shut > 1) {
    return found("channel: neither open nor shut", is_shut, shut);
  }
  for (uint32_t i = 0; i < view->max_ports; i++) {
    finding_t finding = look_at_port(view, i);
    if (finding.what != NULL) {
      return finding;
    }
  }
  return view->kind == SHMIPC_SPSC ? look_at_records(view)
                                   : look_at_cells(view);
}

// `region` is const for all that look; a view can do more.
static const char *look_at(const shmipc_region_t *region, uint64_t offset,
                           uint64_t *out_offset, uint64_t *out_value) {
  shmipc_view_t view;
  shmipc_region_t *same = (shmipc_region_t *)(uintptr_t)region;
  *out_offset = offset;
  *out_value = 0;
  if (shmipc_view_make(same, region->base + offset, &view) < 0) {
    return "channel: its sizes are not those that it was made with";
  }
  finding_t finding = look_at_view(&view);
  if (finding.what != NULL) {
    *out_offset =
        (uint64_t)((const unsigned char *)finding.where - region->base);
    *out_value = finding.value;
  }
  return finding.what;
}

const char *shmipc_look_at_channel(const shmipc_region_t *region,
                                   uint32_t index, uint64_t *out_offset,
                                   uint64_t *out_value) {
  return look_at(region, (uint64_t)index * SHMIPC_CHANNEL_ALIGNMENT, out_offset,
                 out_value);
}

const char *shmipc_look_at_root_channel(const shmipc_region_t *region,
                                        uint32_t index, uint64_t *out_offset,
                                        uint64_t *out_value) {
  const shmipc_root_t *root = shmipc_root_of(region, index);
  uint64_t offset = __atomic_load_n(&root->ref, __ATOMIC_RELAXED);
  *out_offset = offset;
  *out_value = 0;
  shmipc_place_t place;
  // What is not mapped is for others to check; what is no block was found.
  if ((__atomic_load_n(&root->state, __ATOMIC_ACQUIRE) & 1) == 0 ||
      offset % SHMIPC_CHANNEL_ALIGNMENT != 0 || offset < region->data_offset ||
      offset > shmipc_mapped_bytes(region) - sizeof(shmipc_channel_t) ||
      shmipc_place_find(region, region->base + offset, &place) < 0) {
    return NULL;
  }
  const shmipc_geometry_t *geometry =
      (const shmipc_geometry_t *)(const void *)(region->base + offset);
  if (__atomic_load_n(&geometry->magic, __ATOMIC_RELAXED) !=
      SHMIPC_CHANNEL_MAGIC) {
    return NULL;
  }
  return look_at(region, offset, out_offset, out_value);
}

int shmipc_channel_verify(shmipc_region_t *region, const void *channel,
                          shmipc_problem_fn_t *report, void *context) {
  shmipc_view_t view;
  int status = shmipc_view_make(region, channel, &view);
  if (status < 0) {
    return status;
  }
  uint64_t offset = (uint64_t)((const unsigned char *)channel - region->base);
  return shmipc_examine(region, shmipc_look_at_channel,
                        (uint32_t)(offset / SHMIPC_CHANNEL_ALIGNMENT), report,
                        context);
}
