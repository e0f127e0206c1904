// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Names of blocks: a table in the heap, whose entries change under a robust
// mutex and are read without it.
//
//   add      name and ref; state: there is one; the block: the region's
//   remove   the block: ours; state: there is none
//
// 1. The store of the state is what makes or ends a root; before it and after
//    it whatever else is in the entry has no meaning.
// 2. While there is a root and no change is under way, its block is the
//    region's. Killed in the middle of either change, it is the dead one's,
//    with a root or without. With a root it is made the region's by the next
//    that reclaims (`redo`): adding is then complete, removing was not begun.
//    Without a root, it is reclaimed as any other.
// 3. `state` counts changes, so a reader that finds the same before and after
//    has read one entry.
//
// Whatever the table says: names are read up to their array's end, refs are
// looked up as any pointer.

#include "shmipc/root.h"

#include <errno.h>
#include <string.h>

#include "shmipc/block_internal.h"

#define THERE 1u
#define LOOKS 1000

static int name_check(const char *name) {
  size_t len = name != NULL ? strlen(name) : 0;
  if (len == 0) {
    return -EINVAL;
  }
  return len <= SHMIPC_ROOT_NAME_MAX ? 0 : -ENAMETOOLONG;
}

int shmipc_roots_lock(shmipc_region_t *region) {
  shmipc_mutex_t *mutex = &shmipc_heap_head_of(region)->roots_mutex;
  int status = shmipc_mutex_lock(region, mutex, SHMIPC_GATE_WAIT_NS);
  if (status == -EOWNERDEAD) {
    // Entries are whole at every instruction; and nobody reclaims.
    __atomic_store_n(&shmipc_heap_head_of(region)->reclaimer, 0,
                     __ATOMIC_RELEASE);
    return shmipc_mutex_consistent(region, mutex);
  }
  if (status == -ENOTRECOVERABLE) {
    return -EPROTO;
  }
  return status == -ETIMEDOUT ? -EBUSY : status;
}

void shmipc_roots_unlock(shmipc_region_t *region) {
  (void)shmipc_mutex_unlock(region, &shmipc_heap_head_of(region)->roots_mutex);
}

static uint32_t state_of(const shmipc_root_t *root) {
  // Acquire: pairs with the release store of a change.
  return __atomic_load_n(&root->state, __ATOMIC_ACQUIRE);
}

static void set_state(shmipc_root_t *root, uint32_t state) {
  __atomic_store_n(&root->state, state, __ATOMIC_RELEASE);
}

// Copies a name, and ends it. Bytes, since it may change meanwhile. Acquire:
// the second look at the state comes after.
static void copy_name(const shmipc_root_t *root, char *name) {
  for (size_t i = 0; i < sizeof(root->name); i++) {
    name[i] = __atomic_load_n(&root->name[i], __ATOMIC_ACQUIRE);
  }
  name[sizeof(root->name) - 1] = '\0';
}

// Reads an entry. 1: a root; 0: none; -EAGAIN: it has changed meanwhile.
static int read_root(const shmipc_root_t *root, char *name,
                     shmipc_ref_t *out_ref) {
  uint32_t state = state_of(root);
  if ((state & THERE) == 0) {
    return 0;
  }
  copy_name(root, name);
  out_ref->offset = __atomic_load_n(&root->ref, __ATOMIC_ACQUIRE);
  return __atomic_load_n(&root->state, __ATOMIC_RELAXED) == state ? 1 : -EAGAIN;
}

// The entry of that name, or NULL; -EAGAIN in `out_status` if it is not sure
// that there is none.
static shmipc_root_t *find(const shmipc_region_t *region, const char *name,
                           shmipc_ref_t *out_ref, int *out_status) {
  *out_status = 0;
  for (uint32_t i = 0; i < SHMIPC_ROOTS_MAX; i++) {
    shmipc_root_t *root = shmipc_root_of(region, i);
    char copy[sizeof(root->name)];
    int status = read_root(root, copy, out_ref);
    if (status == 1 && strcmp(copy, name) == 0) {
      *out_status = 0;
      return root;
    }
    *out_status = status == -EAGAIN ? status : *out_status;
  }
  return NULL;
}

static shmipc_root_t *find_free(const shmipc_region_t *region) {
  for (uint32_t i = 0; i < SHMIPC_ROOTS_MAX; i++) {
    shmipc_root_t *root = shmipc_root_of(region, i);
    if ((state_of(root) & THERE) == 0) {
      return root;
    }
  }
  return NULL;
}

// The word of the block that a root leads to, or NULL.
static uint32_t *word_of(shmipc_region_t *region, shmipc_ref_t ref) {
  shmipc_place_t place;
  void *block = shmipc_block_get(region, ref, 1);
  if (block == NULL || shmipc_place_find(region, block, &place) < 0) {
    return NULL;
  }
  return place.word;
}

void shmipc_roots_redo(shmipc_region_t *region, shmipc_census_t *census) {
  for (uint32_t i = 0; i < SHMIPC_ROOTS_MAX; i++) {
    char name[sizeof(shmipc_root_of(region, i)->name)];
    shmipc_ref_t ref;
    if (read_root(shmipc_root_of(region, i), name, &ref) != 1) {
      continue;
    }
    uint32_t *word = word_of(region, ref);
    uint32_t seen = word != NULL ? shmipc_word_load(word) : 0;
    // Free only if somebody freed a root's block.
    if (seen != SHMIPC_BLOCK_FREE && seen != SHMIPC_BLOCK_REGION &&
        !shmipc_block_is_alive(region, census, seen)) {
      (void)shmipc_word_change(word, seen, SHMIPC_BLOCK_REGION);
    }
  }
}

// Under the mutex. -EEXIST, -ENOSPC.
static int add(shmipc_region_t *region, const char *name, shmipc_ref_t ref,
               shmipc_ref_t *out_existing) {
  int status;
  if (find(region, name, out_existing, &status) != NULL) {
    return -EEXIST;
  }
  shmipc_root_t *root = find_free(region);
  if (root == NULL) {
    return -ENOSPC;
  }
  size_t len = strlen(name);
  // Release: who reads one of these sees that the state has changed before.
  for (size_t i = 0; i < sizeof(root->name); i++) {
    __atomic_store_n(&root->name[i], i < len ? name[i] : '\0',
                     __ATOMIC_RELEASE);
  }
  __atomic_store_n(&root->ref, ref.offset, __ATOMIC_RELEASE);
  set_state(root, state_of(root) + 1);
  return 0;
}

static int add_locked(shmipc_region_t *region, const char *name, void *block,
                      shmipc_ref_t *out_existing) {
  int status = shmipc_roots_lock(region);
  if (status < 0) {
    return status;
  }
  status = add(region, name, shmipc_ref_of(region, block), out_existing);
  if (status == 0) {
    (void)shmipc_block_share(region, block);
  }
  shmipc_roots_unlock(region);
  return status;
}

static int begin(shmipc_region_t *region, const char *name, bool writes) {
  int status = shmipc_heap_status(region, writes);
  return status < 0 ? status : name_check(name);
}

int shmipc_root_add(shmipc_region_t *region, const char *name, void *block) {
  int status = begin(region, name, true);
  shmipc_place_t place;
  if (status == 0) {
    status = shmipc_place_find(region, block, &place);
  }
  if (status < 0) {
    return status;
  }
  uint32_t word = shmipc_word_load(place.word);
  if (word != SHMIPC_BLOCK_OWNER(region->slot, region->slot_generation)) {
    return word == SHMIPC_BLOCK_FREE ? -EALREADY : -EPERM;
  }
  shmipc_ref_t existing;
  return add_locked(region, name, block, &existing);
}

int shmipc_root_create(shmipc_region_t *region, const char *name,
                       size_t size_bytes, shmipc_root_fn_t *initialize,
                       void *context, shmipc_ref_t *out_ref) {
  shmipc_ref_t ref;
  int status = begin(region, name, true);
  if (status == 0) {
    status = shmipc_root_find(region, name, &ref);
    status = status == -ENOENT ? 0 : status == 0 ? -EEXIST : status;
  }
  if (status == -EEXIST) {
    *out_ref = ref;
  }
  if (status < 0) {
    return status;
  }
  int saved = errno;
  void *block = shmipc_block_alloc(region, size_bytes);
  status = block != NULL ? 0 : -errno;
  errno = saved;
  if (status < 0) {
    return status;
  }
  memset(block, 0, size_bytes);
  if (initialize != NULL) {
    status = initialize(context, block, size_bytes);
  }
  status = status < 0 ? status : add_locked(region, name, block, &ref);
  if (status < 0) {
    (void)shmipc_block_free(region, block);
  } else {
    ref = shmipc_ref_of(region, block);
  }
  if (status == 0 || status == -EEXIST) {
    *out_ref = ref;
  }
  return status;
}

int shmipc_root_find(shmipc_region_t *region, const char *name,
                     shmipc_ref_t *out_ref) {
  int status = begin(region, name, false);
  if (status < 0) {
    return status;
  }
  for (int i = 0; i < LOOKS; i++) {
    shmipc_ref_t ref;
    if (find(region, name, &ref, &status) != NULL) {
      *out_ref = ref;
      return 0;
    }
    if (status != -EAGAIN) {
      return -ENOENT;
    }
  }
  return -EBUSY;
}

// Makes a root's block ours: from the region's, or where a change was left half
// done, a dead process's. -ESTALE: somebody freed or took it.
static int make_ours(shmipc_region_t *region, shmipc_ref_t ref) {
  uint32_t owner = SHMIPC_BLOCK_OWNER(region->slot, region->slot_generation);
  uint32_t *word = word_of(region, ref);
  uint32_t seen = word != NULL ? shmipc_word_load(word) : SHMIPC_BLOCK_FREE;
  shmipc_census_t census;
  shmipc_census_begin(&census);
  if (seen == SHMIPC_BLOCK_FREE ||
      (seen != SHMIPC_BLOCK_REGION && seen != owner &&
       shmipc_block_is_alive(region, &census, seen)) ||
      !shmipc_word_change(word, seen, owner)) {
    return -ESTALE;
  }
  return 0;
}

int shmipc_root_remove(shmipc_region_t *region, const char *name,
                       shmipc_ref_t *out_ref) {
  int status = begin(region, name, true);
  if (status == 0) {
    status = shmipc_roots_lock(region);
  }
  if (status < 0) {
    return status;
  }
  shmipc_ref_t ref;
  shmipc_root_t *root = find(region, name, &ref, &status);
  status = -ENOENT;
  if (root != NULL) {
    status = make_ours(region, ref);
    set_state(root, state_of(root) + 1);
  }
  if (status == 0) {
    *out_ref = ref;
  }
  shmipc_roots_unlock(region);
  return status;
}

int shmipc_root_list(shmipc_region_t *region, shmipc_root_list_fn_t *visit,
                     void *context) {
  int status = shmipc_heap_status(region, false);
  if (status < 0) {
    return status;
  }
  int count = 0;
  for (uint32_t i = 0; i < SHMIPC_ROOTS_MAX; i++) {
    char name[sizeof(shmipc_root_of(region, i)->name)];
    shmipc_ref_t ref;
    if (read_root(shmipc_root_of(region, i), name, &ref) == 1) {
      visit(context, name, ref);
      count++;
    }
  }
  return count;
}
