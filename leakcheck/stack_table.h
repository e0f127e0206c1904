// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// stack_table: call stacks as small numbers.
//
// A tree whose nodes are (caller's node, return address) pairs; a stack is the
// number of its innermost frame's node, and stacks share the nodes of their
// common outer frames.
//
//   stack_table_t *table = stack_table_create();
//   uint32_t id = STACK_TABLE_NONE;
//   for (each frame, outermost first) {
//     id = stack_table_intern(table, id, address, define, context);
//   }
//
// Threads: any thread at any time, without locks. Memory: reserved once from
// the kernel, touched as needed, wiped in a forked child (where the table is
// then empty and usable). Never moves, never calls malloc.

#ifndef MY_ALLOC_LEAKCHECK_STACK_TABLE_H_
#define MY_ALLOC_LEAKCHECK_STACK_TABLE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The outermost frame's caller, and the answer when the table is full.
#define STACK_TABLE_NONE 0u

typedef struct stack_table stack_table_t;

// Called by stack_table_intern() for a node that is new, before any other
// thread can learn its id. Two threads that meet the same new pair at once may
// both define it, with different ids, of which one is then never used again.
typedef void (*stack_table_define_t)(void *context, uint32_t id,
                                     uint32_t parent_id, uintptr_t address);

// Reserves room for `max_nodes` nodes, or, where the address space is limited,
// for as many fewer as can be had. NULL when not even 4,096 can.
stack_table_t *stack_table_create(size_t max_nodes);

// Gives the memory back. NULL is a no-op.
void stack_table_destroy(stack_table_t *table);

// Returns the id of (parent_id, address), greater than `parent_id`; the same
// for every call until stack_table_forget() of the address. STACK_TABLE_NONE
// when the table is full.
uint32_t stack_table_intern(stack_table_t *table, uint32_t parent_id,
                            uintptr_t address, stack_table_define_t define,
                            void *context);

// No later stack_table_intern() returns a node made for an address in
// [start, end): something else may be loaded there. Ids stay valid.
// Proportional to the number of nodes.
void stack_table_forget(stack_table_t *table, uintptr_t start, uintptr_t end);

// Returns how many ids were given out.
size_t stack_table_count(const stack_table_t *table);

// Returns NULL, or a text naming the first broken invariant. For tests; no
// other thread may be in the table.
const char *stack_table_check(const stack_table_t *table);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_STACK_TABLE_H_
