// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the records of a log define: stacks, threads, modules, the process.
//
// Memory follows the number of records, not the numbers in them, with one
// exception that is bounded by the format: stack nodes lie in pages by id, so a
// forged log with ids far apart can have HEAPLOG_STACK_ID_MAX nodes' worth of
// pages, 256 MiB, and no more. In a real log ids are dense.
//
// A stack's parent has a smaller id, so walks to the root end.
//
// Ids of threads and modules are the file's to choose. Each map mixes them with
// a number of its own that the file cannot know, so no choice of ids makes them
// meet in the map more often than chance does.

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "leakcheck/heaplog_reader_internal.h"

#define ID_MAP_CAPACITY_MIN 16u
#define ARRAY_CAPACITY_MIN 16u

static_assert(sizeof(heaplog_stack_node_t) == 16, "as documented");
static_assert((HEAPLOG_STACK_ID_MAX + 1) % HEAPLOG_STACK_PAGE_NODES == 0, "");

// A number that the writer of the file cannot know.
static uint64_t random_seed(const void *address) {
  uint64_t seed;
  if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) == (ssize_t)sizeof(seed)) {
    return seed;
  }
  // A kernel that has just started: where we are, and when.
  struct timespec time = {.tv_sec = 0};
  (void)clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)(uintptr_t)address ^ (uint64_t)time.tv_nsec << 32 ^
         (uint64_t)time.tv_sec;
}

// Where the search for an id begins: the top bits of splitmix64's mix.
static uint32_t id_map_home(const heaplog_id_map_t *map, uint32_t id) {
  uint64_t mix = map->seed ^ id;
  mix = (mix ^ mix >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  mix = (mix ^ mix >> 27) * UINT64_C(0x94d049bb133111eb);
  return (uint32_t)((mix >> 32) * map->capacity >> 32);
}

static struct heaplog_id_slot *id_map_slot(heaplog_id_map_t *map, uint32_t id) {
  uint32_t i = id_map_home(map, id);
  for (;; i++) {
    struct heaplog_id_slot *slot = &map->slots[i & (map->capacity - 1)];
    map->num_probes++;
    if (slot->index_plus_one == 0 || slot->id == id) {
      return slot;
    }
  }
}

// Returns an id's index, or -1.
static int64_t id_map_get(heaplog_id_map_t *map, uint32_t id) {
  return map->capacity == 0 ? -1
                            : (int64_t)id_map_slot(map, id)->index_plus_one - 1;
}

static bool id_map_grow(heaplog_id_map_t *map) {
  heaplog_id_map_t larger = {
      .seed = map->seed, .num_probes = map->num_probes, .count = map->count};
  if (map->capacity > UINT32_MAX / 2) {
    return false;
  }
  larger.capacity =
      map->capacity == 0 ? ID_MAP_CAPACITY_MIN : map->capacity * 2;
  larger.slots = calloc(larger.capacity, sizeof(*larger.slots));
  if (larger.slots == NULL) {
    return false;
  }
  if (map->capacity == 0) {
    larger.seed = random_seed(larger.slots);
  }
  for (uint32_t i = 0; i < map->capacity; i++) {
    if (map->slots[i].index_plus_one != 0) {
      *id_map_slot(&larger, map->slots[i].id) = map->slots[i];
    }
  }
  free(map->slots);
  *map = larger;
  return true;
}

// Adds an id that is not there. Returns false without memory.
static bool id_map_add(heaplog_id_map_t *map, uint32_t id, uint32_t index) {
  if (map->count >= map->capacity / 2 && !id_map_grow(map)) {
    return false;
  }
  *id_map_slot(map, id) =
      (struct heaplog_id_slot){.id = id, .index_plus_one = index + 1};
  map->count++;
  return true;
}

// Makes room for one more element. Returns false without memory.
static bool grow_array(void **array, size_t count, size_t *capacity,
                       size_t element_bytes) {
  if (count < *capacity) {
    return true;
  }
  // Indices have 32 bits in events and one to spare in the map.
  if (count >= UINT32_MAX - 1) {
    return false;
  }
  size_t larger = *capacity == 0 ? ARRAY_CAPACITY_MIN : *capacity * 2;
  void *moved = reallocarray(*array, larger, element_bytes);
  if (moved == NULL) {
    return false;
  }
  *array = moved;
  *capacity = larger;
  return true;
}

// Copies bytes and puts a NUL behind. NULL without memory.
static char *copy_string(const void *bytes, size_t size_bytes) {
  char *copy = malloc(size_bytes + 1);
  if (copy != NULL) {
    memcpy(copy, bytes, size_bytes);
    copy[size_bytes] = '\0';
  }
  return copy;
}

heaplog_error_code_t heaplog_definitions_add_stack(
    heaplog_definitions_t *definitions, uint32_t stack_id, uint32_t parent_id,
    uint64_t instruction_pointer) {
  if (stack_id > HEAPLOG_STACK_ID_MAX || parent_id >= stack_id) {
    return HEAPLOG_ERROR_RECORD;
  }
  if (definitions->stack_pages == NULL) {
    definitions->stack_pages =
        calloc(HEAPLOG_STACK_PAGES, sizeof(*definitions->stack_pages));
    if (definitions->stack_pages == NULL) {
      return HEAPLOG_ERROR_NO_MEMORY;
    }
  }
  heaplog_stack_node_t **page =
      &definitions->stack_pages[stack_id / HEAPLOG_STACK_PAGE_NODES];
  if (*page == NULL) {
    *page = calloc(HEAPLOG_STACK_PAGE_NODES, sizeof(**page));
    if (*page == NULL) {
      return HEAPLOG_ERROR_NO_MEMORY;
    }
  }
  heaplog_stack_node_t *node = &(*page)[stack_id % HEAPLOG_STACK_PAGE_NODES];
  if (node->is_defined) {
    return node->parent_id == parent_id &&
                   node->instruction_pointer == instruction_pointer
               ? HEAPLOG_OK
               : HEAPLOG_ERROR_RECORD;
  }
  *node = (heaplog_stack_node_t){.instruction_pointer = instruction_pointer,
                                 .parent_id = parent_id,
                                 .is_defined = 1};
  if (definitions->stack_id_end <= stack_id) {
    definitions->stack_id_end = stack_id + 1;
  }
  return HEAPLOG_OK;
}

const heaplog_stack_node_t *heaplog_definitions_stack(
    const heaplog_definitions_t *definitions, uint32_t stack_id) {
  if (stack_id >= definitions->stack_id_end) {
    return NULL;
  }
  const heaplog_stack_node_t *page =
      definitions->stack_pages[stack_id / HEAPLOG_STACK_PAGE_NODES];
  if (page == NULL) {
    return NULL;
  }
  const heaplog_stack_node_t *node = &page[stack_id % HEAPLOG_STACK_PAGE_NODES];
  return node->is_defined ? node : NULL;
}

heaplog_error_code_t heaplog_definitions_add_thread(
    heaplog_definitions_t *definitions, uint32_t id,
    const heaplog_thread_t *thread, uint32_t *out_index) {
  int64_t known = id_map_get(&definitions->thread_ids, id);
  if (known >= 0) {
    memcpy(definitions->threads[known].name, thread->name,
           sizeof(thread->name));
    *out_index = (uint32_t)known;
    return HEAPLOG_OK;
  }
  size_t count = definitions->thread_count;
  if (!grow_array((void **)&definitions->threads, count,
                  &definitions->thread_capacity, sizeof(*thread)) ||
      !id_map_add(&definitions->thread_ids, id, (uint32_t)count)) {
    return HEAPLOG_ERROR_NO_MEMORY;
  }
  definitions->threads[count] = *thread;
  definitions->thread_count = count + 1;
  *out_index = (uint32_t)count;
  return HEAPLOG_OK;
}

heaplog_error_code_t heaplog_definitions_add_module(
    heaplog_definitions_t *definitions, const heaplog_module_t *module,
    size_t path_bytes) {
  if (id_map_get(&definitions->module_ids, module->id) >= 0) {
    return HEAPLOG_ERROR_RECORD;
  }
  size_t count = definitions->module_count;
  if (!grow_array((void **)&definitions->modules, count,
                  &definitions->module_capacity, sizeof(*module))) {
    return HEAPLOG_ERROR_NO_MEMORY;
  }
  char *path = copy_string(module->path, path_bytes);
  if (path == NULL ||
      !id_map_add(&definitions->module_ids, module->id, (uint32_t)count)) {
    free(path);
    return HEAPLOG_ERROR_NO_MEMORY;
  }
  definitions->modules[count] = *module;
  definitions->modules[count].path = path;
  definitions->module_count = count + 1;
  return HEAPLOG_OK;
}

void heaplog_definitions_unload_module(heaplog_definitions_t *definitions,
                                       uint32_t id, uint64_t time_ns) {
  int64_t known = id_map_get(&definitions->module_ids, id);
  // Its load may have been lost when the disk was full.
  if (known >= 0) {
    definitions->modules[known].unload_time_ns = time_ns;
  }
}

heaplog_error_code_t heaplog_definitions_set_process(
    heaplog_definitions_t *definitions, const unsigned char *executable,
    size_t executable_bytes, const unsigned char *command_line,
    size_t command_line_bytes) {
  // The process of a log does not change, and what was lent must stay.
  if (definitions->executable != NULL) {
    return HEAPLOG_OK;
  }
  char *executable_copy = copy_string(executable, executable_bytes);
  char *command_line_copy = copy_string(command_line, command_line_bytes);
  if (executable_copy == NULL || command_line_copy == NULL) {
    free(executable_copy);
    free(command_line_copy);
    return HEAPLOG_ERROR_NO_MEMORY;
  }
  definitions->executable = executable_copy;
  definitions->command_line = command_line_copy;
  definitions->command_line_bytes = command_line_bytes;
  return HEAPLOG_OK;
}

void heaplog_definitions_clear(heaplog_definitions_t *definitions) {
  if (definitions->stack_pages != NULL) {
    for (size_t i = 0; i < HEAPLOG_STACK_PAGES; i++) {
      free(definitions->stack_pages[i]);
    }
    free(definitions->stack_pages);
  }
  free(definitions->thread_ids.slots);
  free(definitions->threads);
  for (size_t i = 0; i < definitions->module_count; i++) {
    // Ours; const in the struct for its borrowers.
    free((char *)(uintptr_t)definitions->modules[i].path);
  }
  free(definitions->module_ids.slots);
  free(definitions->modules);
  free(definitions->executable);
  free(definitions->command_line);
  *definitions = (heaplog_definitions_t){.stack_pages = NULL};
}
