// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Channels: their memory and its sizes.
//
// The geometry never changes; its hash finds accidents. Whoever opens a port
// checks each field against the others and against what is mapped, and works
// with its own copy from then on.

#include <string.h>

#include "shmipc/block.h"
#include "shmipc/channel_internal.h"
#include "shmipc/root.h"
#include "shmipc/thread_record.h"

#define DEFAULT_MESSAGES 64u
#define DEFAULT_PORTS 16u

_Static_assert(offsetof(shmipc_geometry_t, hash) == 56, "layout");
_Static_assert(offsetof(shmipc_channel_t, is_shut) == 64, "layout");
_Static_assert(offsetof(shmipc_channel_t, sides) == 128, "layout");
_Static_assert(offsetof(shmipc_channel_t, sender_hint) == 256, "layout");
_Static_assert(offsetof(shmipc_channel_t, head) == 320, "layout");
_Static_assert(sizeof(shmipc_side_t) == SHMIPC_LINE, "layout");
_Static_assert(sizeof(shmipc_channel_t) == 384, "layout");
_Static_assert(sizeof(shmipc_port_entry_t) == SHMIPC_LINE, "layout");
_Static_assert(offsetof(shmipc_cell_t, payload) == 16, "layout");

// As region_header.c: FNV-1a, over words.
static uint64_t hash_of(const shmipc_geometry_t *geometry) {
  const unsigned char *bytes = (const unsigned char *)geometry;
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < offsetof(shmipc_geometry_t, hash); i++) {
    hash = (hash ^ bytes[i]) * 0x100000001b3u;
  }
  return hash;
}

static uint64_t total_bytes(const shmipc_geometry_t *geometry) {
  // SPSC: the payload of the last record ends 8 bytes behind it.
  uint64_t tail = geometry->kind == SHMIPC_SPSC ? SHMIPC_LINE : 0;
  return (shmipc_ring_offset(geometry->max_ports) + geometry->ring_bytes +
          tail + SHMIPC_LINE - 1) &
         ~(uint64_t)(SHMIPC_LINE - 1);
}

// Room for that many messages, a gap and what is left over at the end: any
// message then fits into an empty ring, wherever its place is.
static uint64_t spsc_ring_bytes(uint64_t message_bytes, uint64_t num_messages,
                                bool is_fixed) {
  uint64_t bytes = shmipc_record_bytes(message_bytes);
  return (num_messages + 1) * bytes + (is_fixed ? 0 : 2 * SHMIPC_SPSC_UNIT);
}

static bool plan(const shmipc_channel_options_t *options,
                 shmipc_geometry_t *out_geometry) {
  uint64_t num_messages = options->capacity_messages != 0
                              ? options->capacity_messages
                              : DEFAULT_MESSAGES;
  uint32_t max_ports =
      options->max_ports != 0 ? options->max_ports : DEFAULT_PORTS;
  if (options->message_bytes == 0 ||
      options->message_bytes > SHMIPC_MESSAGE_BYTES_MAX ||
      num_messages > SHMIPC_MESSAGES_MAX ||
      max_ports > SHMIPC_CHANNEL_PORTS_MAX ||
      (options->kind != SHMIPC_SPSC && options->kind != SHMIPC_MPMC)) {
    return false;
  }
  shmipc_geometry_t geometry = {
      .magic = SHMIPC_CHANNEL_MAGIC,
      .version = SHMIPC_CHANNEL_VERSION,
      .kind = options->kind,
      .is_fixed = options->is_fixed,
      .max_ports = options->kind == SHMIPC_SPSC ? 2 : max_ports,
      .message_bytes = options->message_bytes,
  };
  if (options->kind == SHMIPC_SPSC) {
    geometry.ring_bytes = spsc_ring_bytes(options->message_bytes, num_messages,
                                          options->is_fixed);
  } else {
    geometry.num_cells = 2;
    while (geometry.num_cells < num_messages) {
      geometry.num_cells *= 2;
    }
    geometry.ring_bytes =
        geometry.num_cells * shmipc_cell_bytes(options->message_bytes);
  }
  geometry.hash = hash_of(&geometry);
  *out_geometry = geometry;
  return true;
}

size_t shmipc_channel_bytes(const shmipc_channel_options_t *options) {
  shmipc_geometry_t geometry;
  return plan(options, &geometry) ? (size_t)total_bytes(&geometry) : 0;
}

int shmipc_channel_init(void *memory, size_t size_bytes,
                        const shmipc_channel_options_t *options) {
  shmipc_geometry_t geometry;
  if ((uintptr_t)memory % SHMIPC_CHANNEL_ALIGNMENT != 0 ||
      !plan(options, &geometry)) {
    return -EINVAL;
  }
  if (size_bytes < total_bytes(&geometry)) {
    return -ENOSPC;
  }
  // All zero is: nobody has a port, SPSC has no record, MPMC's cells are free.
  memset(memory, 0, (size_t)total_bytes(&geometry));
  memcpy(memory, &geometry, sizeof(geometry));
  return 0;
}

int shmipc_channel_create(shmipc_region_t *region, const char *name,
                          const shmipc_channel_options_t *options,
                          shmipc_ref_t *out_ref) {
  size_t bytes = shmipc_channel_bytes(options);
  if (bytes == 0) {
    return -EINVAL;
  }
  int status = shmipc_root_find(region, name, out_ref);
  if (status != -ENOENT) {
    return status == 0 ? -EEXIST : status;
  }
  int saved = errno;
  void *memory =
      shmipc_block_alloc_aligned(region, SHMIPC_CHANNEL_ALIGNMENT, bytes);
  status = memory != NULL ? 0 : -errno;
  errno = saved;
  if (status == 0) {
    status = shmipc_channel_init(memory, bytes, options);
  }
  if (status == 0) {
    status = shmipc_root_add(region, name, memory);
  }
  if (status == 0) {
    *out_ref = shmipc_ref_of(region, memory);
    return 0;
  }
  (void)shmipc_block_free(region, memory);
  // Somebody else was first.
  if (status == -EEXIST) {
    status = shmipc_root_find(region, name, out_ref);
    return status == 0 ? -EEXIST : status;
  }
  return status;
}

// Whether the sizes are those of a channel that `plan` could have made.
static bool is_possible(const shmipc_geometry_t *geometry) {
  if (geometry->magic != SHMIPC_CHANNEL_MAGIC ||
      geometry->version != SHMIPC_CHANNEL_VERSION ||
      geometry->hash != hash_of(geometry) || geometry->is_fixed > 1 ||
      geometry->message_bytes == 0 ||
      geometry->message_bytes > SHMIPC_MESSAGE_BYTES_MAX ||
      geometry->max_ports == 0 ||
      geometry->max_ports > SHMIPC_CHANNEL_PORTS_MAX) {
    return false;
  }
  if (geometry->kind == SHMIPC_MPMC) {
    uint64_t num_cells = geometry->num_cells;
    return num_cells >= 2 && num_cells <= SHMIPC_MESSAGES_MAX &&
           (num_cells & (num_cells - 1)) == 0 &&
           geometry->ring_bytes ==
               num_cells * shmipc_cell_bytes(geometry->message_bytes);
  }
  return geometry->kind == SHMIPC_SPSC && geometry->max_ports == 2 &&
         geometry->ring_bytes % SHMIPC_SPSC_UNIT == 0 &&
         geometry->ring_bytes >= spsc_ring_bytes(geometry->message_bytes, 1,
                                                 geometry->is_fixed != 0) &&
         geometry->ring_bytes <= spsc_ring_bytes(geometry->message_bytes,
                                                 SHMIPC_MESSAGES_MAX,
                                                 geometry->is_fixed != 0);
}

// Whether all of it is the region's; what was added to that since we attached
// is mapped for it.
static bool is_there(shmipc_region_t *region, const void *memory, uint64_t len,
                     uint64_t *out_offset) {
  return shmipc_offset_of(region, memory, (size_t)len, out_offset) ||
         (*out_offset >= region->data_offset &&
          *out_offset < shmipc_mapped_bytes(region) &&
          shmipc_region_at(region, *out_offset - region->data_offset,
                           (size_t)len) != NULL);
}

int shmipc_view_make(shmipc_region_t *region, const void *memory,
                     shmipc_view_t *out_view) {
  if (region->serial == 0) {
    return region->status;
  }
  uint64_t offset;
  if (memory == NULL ||
      !is_there(region, memory, sizeof(shmipc_channel_t), &offset) ||
      offset % SHMIPC_CHANNEL_ALIGNMENT != 0) {
    return -EINVAL;
  }
  shmipc_geometry_t geometry;
  memcpy(&geometry, memory, sizeof(geometry));
  if (!is_possible(&geometry) ||
      !is_there(region, memory, total_bytes(&geometry), &offset)) {
    return -EPROTO;
  }
  unsigned char *base = region->base + offset;
  shmipc_view_t view = {
      .region = region,
      .channel = (shmipc_channel_t *)(void *)base,
      .ring = base + shmipc_ring_offset(geometry.max_ports),
      .message_bytes = geometry.message_bytes,
      .ring_bytes = geometry.ring_bytes,
      .max_ports = geometry.max_ports,
      .kind = geometry.kind,
      .is_fixed = geometry.is_fixed != 0,
  };
  if (geometry.kind == SHMIPC_MPMC) {
    view.cell_bytes = shmipc_cell_bytes(geometry.message_bytes);
    view.mask = geometry.num_cells - 1;
    view.lap_shift = (uint32_t)__builtin_ctzll(geometry.num_cells);
  }
  *out_view = view;
  return 0;
}

int shmipc_channel_info_get(shmipc_region_t *region, const void *channel,
                            shmipc_channel_info_t *out_info) {
  shmipc_view_t view;
  int status = shmipc_view_make(region, channel, &view);
  if (status < 0) {
    return status;
  }
  shmipc_channel_info_t info = {
      .kind = (shmipc_channel_kind_t)view.kind,
      .is_fixed = view.is_fixed,
      .is_shut = __atomic_load_n(&view.channel->is_shut, __ATOMIC_ACQUIRE) != 0,
      .message_bytes = (size_t)view.message_bytes,
  };
  for (uint32_t i = 0; i < view.max_ports; i++) {
    uint64_t word =
        __atomic_load_n(&view.channel->ports[i].word, __ATOMIC_ACQUIRE);
    if (SHMIPC_PORT_OWNER(word) == 0) {
      continue;
    }
    if (!shmipc_port_is_alive(&view, word)) {
      info.num_dead++;
    } else if (SHMIPC_PORT_ROLE(word) == SHMIPC_SENDER) {
      info.num_senders++;
    } else {
      info.num_receivers++;
    }
  }
  *out_info = info;
  return 0;
}
