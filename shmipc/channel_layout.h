// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What is in a channel, byte for byte. Internal.
//
//   0      geometry (immutable)          magic, sizes, their hash
//   64     state: shut, returned, deaths seldom changes, in everybody's cache
//   128    events[0]                     where senders sleep
//   192    events[1]                     where receivers sleep
//   256    hint of senders
//   320    head (SPSC) or hint (MPMC) of receivers
//   384    ports, 64 B each              SPSC: the sender's, the receiver's
//   ...    ring
//
// SPSC, a ring of bytes, in units of 16. A record at `o`:
//
//   o      8 bytes of the payload before    (of the first: nothing)
//   o + 8  its word: 0 none yet | length | onwards from the start
//   o + 16 payload
//
// MPMC, a power of two of cells:
//
//   0      word: state 3 | port 12 | its generation 17 | lap 32
//   8      length
//   16     payload
//
// Hints and ports may say anything: they are where a search begins, and who is
// asked whether it lives.

#ifndef MY_ALLOC_SHMIPC_CHANNEL_LAYOUT_H_
#define MY_ALLOC_SHMIPC_CHANNEL_LAYOUT_H_

#include <stddef.h>
#include <stdint.h>

#include "shmipc/channel.h"
#include "shmipc/event.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHMIPC_CHANNEL_MAGIC 0x316c6e6863706d68u
// 2: those that wait have the barriers of others done (port_fence.c), so they
// must not meet ports that have not registered for that.
#define SHMIPC_CHANNEL_VERSION 2u
#define SHMIPC_SPSC_UNIT 16u
#define SHMIPC_LINE 64u

typedef struct shmipc_geometry {
  uint64_t magic;          // Offset 0.
  uint32_t version;        // 8
  uint32_t kind;           // 12
  uint32_t is_fixed;       // 16
  uint32_t max_ports;      // 20
  uint64_t message_bytes;  // 24
  uint64_t ring_bytes;     // 32. SPSC: in units; MPMC: of all cells.
  uint64_t num_cells;      // 40. MPMC.
  uint64_t reserved;       // 48
  uint64_t hash;           // 56. Of all before it.
} shmipc_geometry_t;

typedef struct shmipc_port_entry {
  // 0 free | SHMIPC_OWNER of the attachment 32 | role 2 | generation 30.
  uint64_t word;  // Offset 0. By compare-and-swap.
  // MPMC: the position that the port has or is about to have, written before
  // the cell is. By the port.
  uint64_t note;  // 8
  // Name of its socket; 0: none. By the port.
  uint64_t socket;  // 16
  // Whether it polls. By the port, and cleared by whoever notifies it.
  uint32_t is_armed;  // 24
  uint8_t padding[36];
} shmipc_port_entry_t;

typedef struct shmipc_side {
  shmipc_event_t event;  // Offset 0.
  // Mode of the barriers of those that notify: count 30 | mode 2.
  uint32_t fence;  // 4
  // Some port of the role has a socket. Never cleared.
  uint32_t polls;  // 8
  uint8_t padding[52];
} shmipc_side_t;

// port_fence.c
typedef enum shmipc_fence_mode {
  SHMIPC_PLAIN = 0,   // None.
  SHMIPC_ASKED = 1,   // They have them, once they see it.
  SHMIPC_FENCED = 2,  // All see it.
} shmipc_fence_mode_t;

#define SHMIPC_FENCE_MODE(word) ((word)&3u)
#define SHMIPC_FENCE_COUNT(word) ((word) >> 2)
#define SHMIPC_FENCE_WORD(count, mode) (((count) << 2) | (uint32_t)(mode))

typedef struct shmipc_channel {
  shmipc_geometry_t geometry;  // Offset 0.
  uint32_t is_shut;            // 64
  // MPMC: a count, not 0: there may be messages that dead receivers had.
  uint32_t returned;   // 68
  uint32_t deaths[2];  // 72. Of senders, of receivers. Count up.
  uint8_t padding0[48];
  shmipc_side_t sides[2];  // 128. By role - 1.
  uint64_t sender_hint;    // 256. MPMC: a position.
  uint8_t padding1[56];
  uint64_t head;  // 320. SPSC: by the receiver. MPMC: a hint, a position.
  uint8_t padding2[56];
  shmipc_port_entry_t ports[];  // 384
} shmipc_channel_t;

#define SHMIPC_PORT_OWNER(word) ((uint32_t)((word) >> 32))
#define SHMIPC_PORT_ROLE(word) ((uint32_t)((word) >> 30) & 3u)
#define SHMIPC_PORT_GENERATION(word) ((uint32_t)(word)&0x3fffffffu)
#define SHMIPC_PORT_WORD(owner, role, generation)         \
  (((uint64_t)(owner) << 32) | ((uint64_t)(role) << 30) | \
   ((generation)&0x3fffffffu))

// The word of an SPSC record: its length and that length's complement.
#define SHMIPC_RECORD_NONE ((uint64_t)0)
#define SHMIPC_RECORD_ONWARDS ((uint64_t)0xffffffffu)
#define SHMIPC_RECORD_OF(len) \
  (((uint64_t) ~((uint32_t)(len) + 1u) << 32) | ((uint32_t)(len) + 1u))

typedef enum shmipc_cell_state {
  SHMIPC_CELL_FREE = 0,      // For the sender at this lap.
  SHMIPC_CELL_WRITING = 1,   // By the port.
  SHMIPC_CELL_READY = 2,     // A message.
  SHMIPC_CELL_READING = 3,   // By the port.
  SHMIPC_CELL_ABORTED = 4,   // No message: to be passed over.
  SHMIPC_CELL_RETURNED = 5,  // A message that a dead receiver had.
} shmipc_cell_state_t;

#define SHMIPC_CELL_STATE(word) ((uint32_t)(word)&7u)
#define SHMIPC_CELL_PORT(word) ((uint32_t)((word) >> 3) & 0xfffu)
#define SHMIPC_CELL_GENERATIONS 0x1ffffu
#define SHMIPC_CELL_GENERATION(word) \
  ((uint32_t)((word) >> 15) & SHMIPC_CELL_GENERATIONS)
#define SHMIPC_CELL_LAP(word) ((uint32_t)((word) >> 32))
#define SHMIPC_CELL_WORD(lap, id, state) \
  (((uint64_t)(uint32_t)(lap) << 32) | (id) | (uint64_t)(state))
// The port's part of it.
#define SHMIPC_CELL_ID(index, generation)                     \
  (((uint64_t)((generation)&SHMIPC_CELL_GENERATIONS) << 15) | \
   ((uint64_t)(index) << 3))

typedef struct shmipc_cell {
  uint64_t word;
  uint32_t len;
  uint32_t reserved;
  unsigned char payload[];
} shmipc_cell_t;

// From record to record, for a length.
static inline uint64_t shmipc_record_bytes(uint64_t len) {
  return (len + 8 + SHMIPC_SPSC_UNIT - 1) & ~(uint64_t)(SHMIPC_SPSC_UNIT - 1);
}

static inline uint64_t shmipc_cell_bytes(uint64_t message_bytes) {
  return (sizeof(shmipc_cell_t) + message_bytes + SHMIPC_LINE - 1) &
         ~(uint64_t)(SHMIPC_LINE - 1);
}

static inline uint64_t shmipc_ring_offset(uint32_t max_ports) {
  return sizeof(shmipc_channel_t) +
         (uint64_t)max_ports * sizeof(shmipc_port_entry_t);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_CHANNEL_LAYOUT_H_
