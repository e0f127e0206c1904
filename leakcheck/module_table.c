// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The loader's own table answers "which object is at this address" exactly and
// without a lock, but not "what changed". So each object met is remembered with
// its range, its link_map's address and a hash of its name; when the loader's
// answer for the same address differs in one of these, the old object is gone.
//
// That is noticed on two occasions: when an address not met before is noted,
// and in a sweep, which asks for the start of every known object and compares
// without following pointers, as those of an object that another thread is
// unloading may dangle.
//
// The build id is read from the object's own program headers, which lie in its
// first page; each step is checked against the mapped range.

#include "leakcheck/module_table.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sched.h>
#include <string.h>

#include "leakcheck/process_info.h"

#define NOTE_ALIGN(bytes) (((uint64_t)(bytes) + 3) & ~(uint64_t)3)

static void lock_table(module_table_t *table) {
  // The builtins, as C++ has no name for C's atomic types. Acquire pairs with
  // the release in unlock_table().
  while (__atomic_exchange_n(&table->lock, 1, __ATOMIC_ACQUIRE) != 0) {
    sched_yield();
  }
}

static void unlock_table(module_table_t *table) {
  __atomic_store_n(&table->lock, 0, __ATOMIC_RELEASE);
}

static uint32_t hash_name(const char *name) {
  uint32_t hash = 2166136261u;
  for (; *name != '\0'; name++) {
    hash = (hash ^ (unsigned char)*name) * 16777619u;
  }
  return hash;
}

// Copies the build id out of one note segment, [at, at + num_bytes).
static void read_notes(const unsigned char *at, uint64_t num_bytes,
                       heaplog_module_t *module) {
  ElfW(Nhdr) note;
  while (num_bytes >= sizeof(note)) {
    memcpy(&note, at, sizeof(note));
    uint64_t name_bytes = NOTE_ALIGN(note.n_namesz);
    uint64_t total = sizeof(note) + name_bytes + NOTE_ALIGN(note.n_descsz);
    if (total > num_bytes) {
      return;
    }
    const unsigned char *name = at + sizeof(note);
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
        memcmp(name, "GNU", 4) == 0 &&
        note.n_descsz <= HEAPLOG_BUILD_ID_BYTES_MAX) {
      module->build_id_bytes = note.n_descsz;
      memcpy(module->build_id, name + name_bytes, note.n_descsz);
      return;
    }
    at += total;
    num_bytes -= total;
  }
}

// True when some readable segment holds [address, address + num_bytes), both
// as in the file.
static bool is_loaded(const ElfW(Phdr) * headers, size_t count,
                      uint64_t address, uint64_t num_bytes) {
  for (size_t i = 0; i < count; i++) {
    const ElfW(Phdr) *header = &headers[i];
    if (header->p_type == PT_LOAD && (header->p_flags & PF_R) != 0 &&
        address >= header->p_vaddr &&
        address - header->p_vaddr <= header->p_filesz &&
        num_bytes <= header->p_filesz - (address - header->p_vaddr)) {
      return true;
    }
  }
  return false;
}

static void read_build_id(heaplog_module_t *module) {
  const unsigned char *base = (const unsigned char *)module->start_address;
  uint64_t mapped_bytes = module->end_address - module->start_address;
  ElfW(Ehdr) elf;
  if (mapped_bytes < 4096) {
    return;
  }
  memcpy(&elf, base, sizeof(elf));
  // Within the first page, since more of the object need not be readable.
  if (memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0 ||
      elf.e_phentsize != sizeof(ElfW(Phdr)) || elf.e_phoff % 8 != 0 ||
      elf.e_phoff > 4096 ||
      elf.e_phnum > (4096 - elf.e_phoff) / sizeof(ElfW(Phdr))) {
    return;
  }
  const ElfW(Phdr) *headers = (const void *)(base + elf.e_phoff);
  for (size_t i = 0; i < elf.e_phnum; i++) {
    const ElfW(Phdr) *header = &headers[i];
    if (header->p_type == PT_NOTE && module->build_id_bytes == 0 &&
        is_loaded(headers, elf.e_phnum, header->p_vaddr, header->p_filesz)) {
      read_notes((const unsigned char *)(module->load_bias + header->p_vaddr),
                 header->p_filesz, module);
    }
  }
}

static void report_loaded(module_table_t *table,
                          const struct dl_find_object *object, uint32_t id,
                          const module_table_sink_t *sink) {
  heaplog_module_t module = {
      .id = id,
      .start_address = (uintptr_t)object->dlfo_map_start,
      .end_address = (uintptr_t)object->dlfo_map_end,
      .load_bias = object->dlfo_link_map->l_addr,
      .path = object->dlfo_link_map->l_name,
  };
  // The program itself has no name here, the vdso one without a file, and a
  // relative name is worth little later: ask the kernel.
  if (module.path[0] != '/' &&
      process_info_mapped_file((uintptr_t)object->dlfo_map_start, table->path,
                               sizeof(table->path))) {
    module.path = table->path;
  }
  read_build_id(&module);
  sink->loaded(sink->context, &module);
}

static void drop(module_table_entry_t *entry, const module_table_sink_t *sink) {
  sink->unloaded(sink->context, entry->id, entry->start, entry->end);
  *entry = (module_table_entry_t){0};
}

void module_table_note(module_table_t *table, uintptr_t address,
                       const module_table_sink_t *sink) {
  struct dl_find_object object;
  if (_dl_find_object((void *)address, &object) != 0) {
    return;
  }
  module_table_entry_t found = {
      .start = (uintptr_t)object.dlfo_map_start,
      .end = (uintptr_t)object.dlfo_map_end,
      .link_map = object.dlfo_link_map,
      .name_hash = hash_name(object.dlfo_link_map->l_name),
  };
  lock_table(table);
  module_table_entry_t *place = NULL;
  for (uint32_t i = 0; i < table->num_entries; i++) {
    module_table_entry_t *entry = &table->entries[i];
    if (entry->end > found.start && entry->start < found.end) {
      if (entry->start == found.start && entry->end == found.end &&
          entry->link_map == found.link_map &&
          entry->name_hash == found.name_hash) {
        goto done;
      }
      drop(entry, sink);
    }
    if (entry->end == 0) {
      place = entry;
    }
  }
  if (place == NULL && table->num_entries < MODULE_TABLE_CAPACITY) {
    place = &table->entries[table->num_entries++];
  }
  if (place != NULL) {
    found.id = ++table->last_id;
    *place = found;
    report_loaded(table, &object, found.id, sink);
  }
done:
  unlock_table(table);
}

void module_table_sweep(module_table_t *table,
                        const module_table_sink_t *sink) {
  lock_table(table);
  for (uint32_t i = 0; i < table->num_entries; i++) {
    module_table_entry_t *entry = &table->entries[i];
    struct dl_find_object object;
    if (entry->end != 0 &&
        (_dl_find_object((void *)entry->start, &object) != 0 ||
         (uintptr_t)object.dlfo_map_start != entry->start ||
         (uintptr_t)object.dlfo_map_end != entry->end ||
         object.dlfo_link_map != entry->link_map)) {
      drop(entry, sink);
    }
  }
  unlock_table(table);
}
