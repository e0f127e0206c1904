// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A hash table with chains, in one mapping:
//
//   | header | last id | buckets: newest node | nodes, in the order made    |
//   | (page) |         | 2^18 x 4 bytes       | {address, parent, next}     |
//             <------------- wiped in a forked child -------------------->
//
// The nodes are dense, so memory grows with the number of stacks, not with the
// size of the reservation; that is why this is not open addressing, which
// touches a page of its own for each of the first few thousand entries.
//
// Inserting: take the next number, fill the node, let the caller define it,
// then compare-and-swap it in as head of its chain. When another thread was
// faster, look at what it put there: if it is the same pair, use that one (our
// node is then in no chain; its number is wasted), else try again.
//
// Invariants:
//   1. A node in a chain is complete and never changes, except that
//      `stack_table_forget` sets its address to FORGOTTEN.
//   2. `next` was in the chain before its node was. So chains end.
//   3. parent < id.

#include "leakcheck/stack_table.h"

#include <assert.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUCKET_BITS 18
#define NUM_BUCKETS ((size_t)1 << BUCKET_BITS)
#define MIN_NODES ((size_t)4096)
// Not a return address.
#define FORGOTTEN ((uintptr_t)1)

typedef struct node {
  // Written by forget only, once the node is in a chain.
  _Atomic uintptr_t address;
  uint32_t parent;  // Immutable in a chain.
  uint32_t next;    // Immutable in a chain; 0 ends it.
} node_t;

static_assert(sizeof(node_t) == 16, "four nodes a cache line");

typedef struct body {
  // The last id given out; may pass the capacity, the surplus is not used.
  // Relaxed: only uniqueness counts.
  _Atomic uint32_t last_id;
  // Acquire of a head pairs with the release that published its node.
  _Atomic uint32_t buckets[NUM_BUCKETS];
  node_t nodes[];  // nodes[0] is not used.
} body_t;

struct stack_table {
  size_t capacity;      // Greatest id. Immutable.
  size_t mapped_bytes;  // Immutable.
  body_t *body;         // Immutable.
};

// Maps a header page and a body of `capacity` nodes; NULL when that fails.
static stack_table_t *map_table(size_t capacity) {
  size_t header_bytes = (size_t)sysconf(_SC_PAGESIZE);
  size_t body_bytes = sizeof(body_t) + (capacity + 1) * sizeof(node_t);
  size_t mapped_bytes = header_bytes + body_bytes;
  unsigned char *base =
      mmap(NULL, mapped_bytes, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return NULL;
  }
  if (madvise(base + header_bytes, body_bytes, MADV_WIPEONFORK) != 0) {
    munmap(base, mapped_bytes);
    return NULL;
  }
  stack_table_t *table = (stack_table_t *)base;
  table->capacity = capacity;
  table->mapped_bytes = mapped_bytes;
  table->body = (body_t *)(base + header_bytes);
  return table;
}

static size_t bucket_of(uint32_t parent_id, uintptr_t address) {
  uint64_t hash = (uint64_t)address * UINT64_C(0x9e3779b97f4a7c15);
  hash = (hash ^ parent_id) * UINT64_C(0xd6e8feb86659fd93);
  return (size_t)(hash >> (64 - BUCKET_BITS));
}

// Searches the chain from `id` on, ending before `end_id`.
static uint32_t find(body_t *body, uint32_t id, uint32_t end_id,
                     uint32_t parent_id, uintptr_t address) {
  while (id != end_id) {
    node_t *node = &body->nodes[id];
    // Relaxed: complete since the head was acquired; a forget at the same
    // time may or may not be seen.
    if (node->parent == parent_id &&
        atomic_load_explicit(&node->address, memory_order_relaxed) == address) {
      return id;
    }
    id = node->next;
  }
  return STACK_TABLE_NONE;
}

// Returns a number nobody has, STACK_TABLE_NONE when there is none left.
static uint32_t take_id(stack_table_t *table) {
  body_t *body = table->body;
  // Looked at first so that a full table does not count on until it wraps.
  if (atomic_load_explicit(&body->last_id, memory_order_relaxed) >=
      table->capacity) {
    return STACK_TABLE_NONE;
  }
  uint32_t id =
      atomic_fetch_add_explicit(&body->last_id, 1, memory_order_relaxed) + 1;
  return id <= table->capacity ? id : STACK_TABLE_NONE;
}

stack_table_t *stack_table_create(size_t max_nodes) {
  stack_table_t *table = NULL;
  for (size_t nodes = max_nodes; table == NULL && nodes >= MIN_NODES;
       nodes /= 4) {
    table = map_table(nodes);
  }
  return table;
}

void stack_table_destroy(stack_table_t *table) {
  if (table != NULL) {
    munmap(table, table->mapped_bytes);
  }
}

uint32_t stack_table_intern(stack_table_t *table, uint32_t parent_id,
                            uintptr_t address, stack_table_define_t define,
                            void *context) {
  assert(address != FORGOTTEN);
  body_t *body = table->body;
  _Atomic uint32_t *bucket = &body->buckets[bucket_of(parent_id, address)];
  uint32_t head = atomic_load_explicit(bucket, memory_order_acquire);
  uint32_t found = find(body, head, 0, parent_id, address);
  if (found != STACK_TABLE_NONE) {
    return found;
  }
  uint32_t id = take_id(table);
  if (id == STACK_TABLE_NONE) {
    return STACK_TABLE_NONE;
  }
  assert(parent_id < id);
  node_t *node = &body->nodes[id];
  node->parent = parent_id;
  atomic_store_explicit(&node->address, address, memory_order_relaxed);
  define(context, id, parent_id, address);
  for (;;) {
    uint32_t old_head = head;
    node->next = head;
    // Release publishes the node, and what `define` did; acquire on failure
    // pairs with the release of the thread that was faster.
    if (atomic_compare_exchange_strong_explicit(
            bucket, &head, id, memory_order_release, memory_order_acquire)) {
      return id;
    }
    found = find(body, head, old_head, parent_id, address);
    if (found != STACK_TABLE_NONE) {
      return found;
    }
  }
}

void stack_table_forget(stack_table_t *table, uintptr_t start, uintptr_t end) {
  size_t count = stack_table_count(table);
  for (size_t id = 1; id <= count; id++) {
    _Atomic uintptr_t *address = &table->body->nodes[id].address;
    // Relaxed: code of the range is not running, so nobody looks for it now;
    // whoever loads something there later does so after this in some order
    // that the loader's locks give.
    uintptr_t value = atomic_load_explicit(address, memory_order_relaxed);
    if (value >= start && value < end) {
      atomic_store_explicit(address, FORGOTTEN, memory_order_relaxed);
    }
  }
}

size_t stack_table_count(const stack_table_t *table) {
  size_t last =
      atomic_load_explicit(&table->body->last_id, memory_order_relaxed);
  return last < table->capacity ? last : table->capacity;
}

const char *stack_table_check(const stack_table_t *table) {
  size_t count = stack_table_count(table);
  size_t num_linked = 0;
  for (size_t i = 0; i < NUM_BUCKETS; i++) {
    uint32_t id =
        atomic_load_explicit(&table->body->buckets[i], memory_order_relaxed);
    for (; id != 0; id = table->body->nodes[id].next) {
      const node_t *node = &table->body->nodes[id];
      uintptr_t address =
          atomic_load_explicit(&node->address, memory_order_relaxed);
      if (id > count) {
        return "a chain holds an id that was not given out";
      }
      if (node->parent >= id) {
        return "a node is older than its parent";
      }
      if (address != FORGOTTEN && bucket_of(node->parent, address) != i) {
        return "a node is in the wrong chain";
      }
      if (++num_linked > count) {
        return "chains share nodes or do not end";
      }
    }
  }
  return NULL;
}
