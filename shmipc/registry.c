// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Looks through the folder of POSIX shared memory and the System V segments.
//
// Files are read, not mapped: one that gets shorter meanwhile is no SIGBUS.
// What is listed is what was there at the moment of the look. What is removed
// is looked at again under the gate (region_file.c) or the name lock
// (region_sysv.c).

#include "shmipc/registry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shmipc/region_internal.h"
#include "shmipc/sysv_internal.h"

typedef struct walk {
  shmipc_entry_fn_t *visit;
  void *context;
  bool removes;
  int count;
} walk_t;

static void fill_from_header(shmipc_entry_t *entry,
                             const shmipc_header_t *header) {
  entry->creator_pid = header->creator_pid;
  entry->created_s = header->created_s;
}

// Counts the live by their locks, and the dead by their words.
static void count_file(int fd, const shmipc_header_t *header,
                       shmipc_entry_t *entry) {
  entry->has_readers = shmipc_presence_any(fd, SHMIPC_LOCK_READERS, 1) == 1;
  for (uint32_t i = 0; i < header->num_slots; i++) {
    uint32_t word = 0;
    off_t offset = SHMIPC_HEADER_BYTES + (off_t)(i * sizeof(shmipc_slot_t));
    if (shmipc_presence_any(fd, i, 1) == 1) {
      entry->num_live++;
    } else if (pread(fd, &word, sizeof(word), offset) ==
                   (ssize_t)sizeof(word) &&
               (word & SHMIPC_SLOT_TAKEN) != 0) {
      entry->num_dead++;
    }
  }
}

// False if the file is no region, or cannot be read.
static bool describe_file(const char *name, shmipc_entry_t *entry) {
  char path[4096];
  struct stat file;
  shmipc_header_t header;
  if (shmipc_file_path(name, path, sizeof(path)) < 0) {
    return false;
  }
  int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return false;
  }
  bool is_ours = fstat(fd, &file) == 0 && S_ISREG(file.st_mode);
  entry->is_unfinished = strncmp(name, ".shmipc.", 8) == 0;
  if (is_ours && !entry->is_unfinished) {
    is_ours =
        pread(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header) &&
        shmipc_header_is_ours(&header, (uint64_t)file.st_size);
    if (is_ours) {
      fill_from_header(entry, &header);
      count_file(fd, &header, entry);
    }
  }
  close(fd);
  entry->backend = SHMIPC_POSIX;
  entry->name = name;
  entry->size_bytes = (uint64_t)file.st_size;
  entry->owner_uid = file.st_uid;
  entry->mode = file.st_mode & 0777;
  return is_ours;
}

// Shows an entry, or removes it and then shows it.
static void handle(walk_t *walk, const shmipc_entry_t *entry) {
  if (walk->removes) {
    int status = entry->backend == SHMIPC_SYSV
                     ? shmipc_sysv_collect(entry->name)
                     : shmipc_file_collect(entry->name);
    if (status != 1) {
      return;
    }
  }
  walk->count++;
  if (walk->visit != NULL) {
    walk->visit(walk->context, entry);
  }
}

static int walk_files(walk_t *walk) {
  DIR *folder = opendir(shmipc_folder);
  if (folder == NULL) {
    return errno == ENOENT ? 0 : -errno;
  }
  const struct dirent *file;
  while ((file = readdir(folder)) != NULL) {
    shmipc_entry_t entry = {0};
    if (describe_file(file->d_name, &entry)) {
      handle(walk, &entry);
    }
  }
  closedir(folder);
  return 0;
}

static void count_segment(int id, const shmipc_header_t *header,
                          shmipc_entry_t *entry) {
  int set = shmipc_sysv_open_set(id, header->num_slots, header->num_undo);
  int live = set >= 0 ? shmipc_sysv_set_count(set) : -1;
  entry->num_live = live > 0 ? (uint32_t)live : 0;
  entry->has_readers =
      set >= 0 && semctl(set, SHMIPC_SYSV_SEM_READERS, GETVAL) > 0;
  void *memory = shmat(id, NULL, SHM_RDONLY);
  if (memory == (void *)-1) {
    return;
  }
  const shmipc_slot_t *slots =
      (const shmipc_slot_t *)(const void *)((const unsigned char *)memory +
                                            SHMIPC_HEADER_BYTES);
  uint32_t num_taken = 0;
  for (uint32_t i = 0; i < header->num_slots; i++) {
    num_taken +=
        __atomic_load_n(&slots[i].word, __ATOMIC_RELAXED) & SHMIPC_SLOT_TAKEN;
  }
  shmdt(memory);
  entry->num_dead =
      num_taken > entry->num_live ? num_taken - entry->num_live : 0;
}

static void handle_segment(walk_t *walk, int id) {
  shmipc_header_t header;
  struct shmid_ds segment;
  if (shmipc_sysv_read_header(id, &header, &segment) < 0 ||
      header.magic != SHMIPC_MAGIC ||
      header.name[sizeof(header.name) - 1] != '\0' ||
      segment.shm_perm.__key != shmipc_sysv_key(header.name)) {
    return;
  }
  bool is_ready = header.ready == SHMIPC_READY;
  if (is_ready && !shmipc_header_is_ours(&header, segment.shm_segsz)) {
    return;
  }
  shmipc_entry_t entry = {
      .backend = SHMIPC_SYSV,
      .name = header.name,
      .size_bytes = segment.shm_segsz,
      .is_unfinished = !is_ready,
      .owner_uid = segment.shm_perm.uid,
      .mode = segment.shm_perm.mode & 0777u,
  };
  fill_from_header(&entry, &header);
  if (is_ready) {
    count_segment(id, &header, &entry);
  }
  handle(walk, &entry);
}

static int walk_segments(walk_t *walk) {
  struct shm_info info;
  int last = shmctl(0, SHM_INFO, (struct shmid_ds *)(void *)&info);
  if (last < 0) {
    // A kernel without System V.
    return errno == ENOSYS ? 0 : -errno;
  }
  for (int i = 0; i <= last; i++) {
    struct shmid_ds segment;
    int id = shmctl(i, SHM_STAT, &segment);
    if (id >= 0) {
      handle_segment(walk, id);
    }
  }
  return 0;
}

static int walk_all(walk_t *walk) {
  int saved = errno;
  int status = walk_files(walk);
  if (status == 0) {
    status = walk_segments(walk);
  }
  errno = saved;
  return status < 0 ? status : walk->count;
}

int shmipc_registry_list(shmipc_entry_fn_t *visit, void *context) {
  walk_t walk = {.visit = visit, .context = context};
  return walk_all(&walk);
}

int shmipc_registry_collect(shmipc_entry_fn_t *visit, void *context) {
  walk_t walk = {.visit = visit, .context = context, .removes = true};
  int status = walk_all(&walk);
  int saved = errno;
  (void)shmipc_sysv_collect_sets();
  errno = saved;
  return status;
}
