// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A list of the objects that must be put in order in the child of a fork, and
// the handlers that do it. Internal.

#ifndef MY_ALLOC_BUFIO_FORK_GUARD_H_
#define MY_ALLOC_BUFIO_FORK_GUARD_H_

#include "bufio/bufio.h"

#ifdef __cplusplus
extern "C" {
#endif

// Has `in_child` called in every child, with the list locked: it must not add
// or remove. -ENOMEM if the handlers could not be installed.
int bufio_fork_guard_add(bufio_fork_node_t *node,
                         void (*in_child)(bufio_fork_node_t *node))
    BUFIO_MUST_USE;

// A node that was not added is a no-op.
void bufio_fork_guard_remove(bufio_fork_node_t *node);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_FORK_GUARD_H_
