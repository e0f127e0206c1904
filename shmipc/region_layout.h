// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What is in a region, byte for byte. Internal.
//
//   0        header (immutable once ready), then the words that change
//   4096     slots: one for each attached process
//   ...      records: one for each thread that uses locks
//   ...      the caller's data, from a page boundary on
//   ...      the heap, if there is one (block_layout.h), from a page boundary
//   on
//
// Everything is in the machine's byte order and read with __atomic builtins
// where it changes. What a process relies on after it attached is in its own
// memory (region_internal.h); from here it reads only what may have any value.

#ifndef MY_ALLOC_SHMIPC_REGION_LAYOUT_H_
#define MY_ALLOC_SHMIPC_REGION_LAYOUT_H_

#include <stddef.h>
#include <stdint.h>

#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHMIPC_MAGIC 0x3163706963706d68u
#define SHMIPC_VERSION 2u
#define SHMIPC_HEADER_BYTES 4096u
#define SHMIPC_READY 0x79646165u

typedef struct shmipc_header {
  uint64_t magic;           // Offset 0.
  uint32_t version;         // 8
  uint32_t header_bytes;    // 12
  uint64_t layout_hash;     // 16. Of the sizes and offsets compiled in.
  uint64_t capacity_bytes;  // 24. Of the whole region.
  uint64_t data_offset;     // 32
  uint32_t num_slots;       // 40
  uint32_t num_records;     // 44
  uint32_t backend;         // 48. shmipc_backend_t.
  uint32_t num_undo;        // 52. Semaphores for the caller.
  uint32_t page_bytes;      // 56. Of the memory: growth is in multiples.
  uint32_t creator_pid;     // 60. For people; its namespace is unknown.
  uint64_t created_s;       // 64. Of CLOCK_REALTIME.
  uint64_t layout_tag;      // 72
  char name[208];           // 80. As given, without the slash; NUL at the end.
  uint64_t heap_offset;     // 288. 0: no heap.
  uint32_t heap_pages;      // 296. That the capacity has room for.
  uint32_t reserved;        // 300
  uint64_t hash;            // 304. Of all bytes before it.
  uint8_t padding[8];
  // Written last by the creator.
  uint32_t ready;  // 320
  uint8_t padding1[60];
  // Records below it have been used. Grows; a hint for how far to look, and
  // checked. Written by those that take a record.
  uint32_t records_used;  // 384
  uint8_t padding2[60];
} shmipc_header_t;

// The word: bit 0 taken, bits 1..31 generation, which counts how often the slot
// was freed. Taken and its presence lock not held: the process is dead.
typedef struct shmipc_slot {
  uint32_t word;        // Written by its process, and under the gate.
  uint32_t pid;         // For people.
  uint64_t attached_s;  // For people.
  uint8_t padding[48];
} shmipc_slot_t;

#define SHMIPC_SLOT_TAKEN 1u

// One thread's. `owner` is 0 or SHMIPC_OWNER(slot, its generation). `holds` are
// the locks that it has or is about to take: offset in the region | kind, 0 for
// none. Written by the thread; by the one that recovers once its process died.
typedef struct shmipc_record {
  uint32_t owner;
  uint32_t generation;  // Counts how often the record was freed.
  uint64_t holds[SHMIPC_HOLDS_MAX];
} shmipc_record_t;

#define SHMIPC_OWNER(slot, generation) \
  (((slot) + 1u) | (((generation)&0x1fffffu) << 11))
#define SHMIPC_OWNER_SLOT(owner) (((owner)&0x7ffu) - 1u)

#define SHMIPC_HOLD_LOCK 1u  // A lock word that names the record.
#define SHMIPC_HOLD_READ 2u  // A reader-writer lock, for reading.
#define SHMIPC_HOLD_KIND 3u

// The lock word of mutexes and reader-writer locks.
//   0..15   index of the owner's record + 1; 0: nobody; 0xffff: given up
//   16..28  low bits of the record's generation
//   29      shared: who is named has it. Otherwise the word is biased: who is
//           named has it if that record has a note of it
//   30      a former owner died with it; not yet consistent
//   31      somebody may be waiting
#define SHMIPC_WORD_INDEX 0xffffu
#define SHMIPC_WORD_OWNER 0x1fffffffu
#define SHMIPC_WORD_SHARED 0x20000000u
#define SHMIPC_WORD_DIED 0x40000000u
#define SHMIPC_WORD_WAITERS 0x80000000u
#define SHMIPC_WORD_GIVEN_UP 0xffffu
#define SHMIPC_WORD_NO_BIAS 0xffffffffu  // What no word says.
#define SHMIPC_WORD_OF(index, generation) \
  (((index) + 1u) | (((generation)&0x1fffu) << 16))

// Sizes that follow from the counts.
static inline uint64_t shmipc_records_offset(uint32_t num_slots) {
  // Records are of two cache lines, and share none.
  uint64_t end =
      SHMIPC_HEADER_BYTES + (uint64_t)num_slots * sizeof(shmipc_slot_t);
  return (end + sizeof(shmipc_record_t) - 1) & ~(sizeof(shmipc_record_t) - 1);
}

static inline uint64_t shmipc_data_offset(uint32_t num_slots,
                                          uint32_t num_records,
                                          uint64_t page_bytes) {
  uint64_t end = shmipc_records_offset(num_slots) +
                 (uint64_t)num_records * sizeof(shmipc_record_t);
  return (end + page_bytes - 1) / page_bytes * page_bytes;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_REGION_LAYOUT_H_
