// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// For programs that are linked to this malloc: central.c says why the handlers
// of fork must be the first. Shared objects cannot have this section.

#include "heap/central.h"

__attribute__((section(".preinit_array"),
               used)) static void (*const register_fork)(void) =
    heap_central_register_fork;
