// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// module_table: which ELF objects (program, libraries, vdso) the addresses on
// call stacks belong to, as objects come and go.
//
//   module_table_note(table, return_address, &sink);  // New? sink->loaded()
//   module_table_sweep(table, &sink);  // After dlclose: sink->unloaded()
//
// Objects are found by glibc's `_dl_find_object`: no lock of the loader is
// taken, so this may run inside malloc while any thread is in dlopen.
//
// Threads: any thread at any time; a spin lock inside. A signal handler must
// not enter it while the thread it interrupted may be inside.

#ifndef MY_ALLOC_LEAKCHECK_MODULE_TABLE_H_
#define MY_ALLOC_LEAKCHECK_MODULE_TABLE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "leakcheck/heaplog.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MODULE_TABLE_CAPACITY 4096

typedef struct module_table_entry {
  uintptr_t start;
  uintptr_t end;         // 0: free.
  const void *link_map;  // The loader's handle; compared, never followed.
  uint32_t name_hash;
  uint32_t id;
} module_table_entry_t;

// Zeroed memory is an empty table.
typedef struct module_table {
  uint32_t lock;         // 1 while held; atomic. Guards all below.
  uint32_t num_entries;  // Entries in use, free ones among them.
  uint32_t last_id;
  module_table_entry_t entries[MODULE_TABLE_CAPACITY];
  char path[HEAPLOG_PATH_BYTES_MAX + 128];  // Not on a small stack.
} module_table_t;

// Who is told. Called with the table locked.
typedef struct module_table_sink {
  void (*loaded)(void *context, const heaplog_module_t *module);
  // [start, end) may hold something else from now on.
  void (*unloaded)(void *context, uint32_t id, uintptr_t start, uintptr_t end);
  void *context;
} module_table_sink_t;

// Makes the object that holds `address` known. `address` must be on the calling
// thread's stack as a return address, so that the object stays loaded. Objects
// known so far that overlap it are gone: they are reported as unloaded first.
// Nothing happens when no object holds it, or the table is full.
void module_table_note(module_table_t *table, uintptr_t address,
                       const module_table_sink_t *sink);

// Reports objects that are no longer where they were.
void module_table_sweep(module_table_t *table, const module_table_sink_t *sink);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_MODULE_TABLE_H_
