// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Regions that are files in memory: POSIX shared memory, by name, and memfd.
//
// A POSIX region is made without a name (O_TMPFILE), gets all its space, its
// header and its data, and then its name by link(2), which fails if there is
// one. Killed before that, it was never there. Where the file system has no
// O_TMPFILE the file has a name of its own first, `.shmipc.PID.N`, which no
// opener takes for a region. Its creator holds the gate meanwhile, so one that
// was killed is told from one at work, and `shmipc_registry_collect` removes
// what it left.
//
// Attaching is done under the gate. Whoever removes a region that nobody uses
// holds it too; so an opener that then finds its file without a name starts
// again, and one that finds a name is seen by the remover.

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shmipc/region_internal.h"

// As glibc's shm_open has it.
const char *shmipc_folder = "/dev/shm";
bool shmipc_no_tmpfile;

#define PROC_PATH_BYTES 40
#define PATH_BYTES 4096
#define ATTEMPTS 1000

int shmipc_file_path(const char *name, char *path, size_t size_bytes) {
  int len = snprintf(path, size_bytes, "%s/%s", shmipc_folder, name);
  return len < 0 || (size_t)len >= size_bytes ? -ENAMETOOLONG : len;
}

int shmipc_file_allocate(int fd, uint64_t from_bytes, uint64_t to_bytes) {
  assert(from_bytes < to_bytes);
  struct rlimit limit;
  // The kernel would send SIGXFSZ.
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      to_bytes > limit.rlim_cur) {
    return -EFBIG;
  }
  int status;
  do {
    status =
        fallocate(fd, 0, (off_t)from_bytes, (off_t)(to_bytes - from_bytes)) == 0
            ? 0
            : -errno;
  } while (status == -EINTR);
  return status;
}

// No fork between the two: the child would keep the parent's locks.
static int open_into(shmipc_region_t *region, const char *path, int flags,
                     unsigned int mode) {
  shmipc_fork_block();
  int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, mode);
  int status = fd >= 0 ? 0 : -errno;
  region->fd = fd;
  shmipc_fork_unblock();
  return status;
}

static void proc_path(int fd, char *path) {
  (void)snprintf(path, PROC_PATH_BYTES, "/proc/self/fd/%d", fd);
}

static int create_memfd(shmipc_region_t *region,
                        const shmipc_region_options_t *options) {
  unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (options->huge_pages) {
    flags |= MFD_HUGETLB;
  }
  shmipc_fork_block();
  int fd = memfd_create("shmipc", flags);
  int status = fd >= 0 ? 0 : -errno;
  region->fd = fd;
  shmipc_fork_unblock();
  if (status == 0 &&
      fchmod(fd, options->mode != 0 ? options->mode : 0600) < 0) {
    return -errno;
  }
  return status;
}

// -EEXIST: the name is taken, or the file was removed as one left behind before
// we had its gate.
static int create_temporary(shmipc_region_t *region, unsigned int mode,
                            char *path) {
  static unsigned int counter;
  unsigned int number = __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED);
  char own[64];
  struct stat file;
  (void)snprintf(own, sizeof(own), ".shmipc.%d.%u", (int)getpid(), number);
  int status = shmipc_file_path(own, path, PATH_BYTES);
  if (status >= 0) {
    status =
        open_into(region, path, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW, mode);
  }
  if (status < 0) {
    path[0] = '\0';
    return status;
  }
  status = shmipc_presence_try_lock(region, SHMIPC_LOCK_GATE);
  if (status < 0 || fstat(region->fd, &file) < 0 || file.st_nlink == 0) {
    shmipc_fork_block();
    close(region->fd);
    region->fd = -1;
    shmipc_fork_unblock();
    path[0] = '\0';
    return -EEXIST;
  }
  return 0;
}

// The file that is to get the name; `path` is the one it has, or "".
static int create_unnamed(shmipc_region_t *region,
                          const shmipc_region_options_t *options, char *path) {
  unsigned int mode = options->mode != 0 ? options->mode : 0600;
  path[0] = '\0';
  if (!shmipc_no_tmpfile) {
    int status = open_into(region, shmipc_folder, O_TMPFILE | O_RDWR, mode);
    // File systems that do not know it, and kernels.
    if (status != -EOPNOTSUPP && status != -EISDIR && status != -EINVAL) {
      return status;
    }
  }
  int status = -EEXIST;
  for (int i = 0; i < ATTEMPTS && status == -EEXIST; i++) {
    status = create_temporary(region, mode, path);
  }
  return status;
}

// Gives the file its name. -EEXIST if that is taken.
static int publish(const shmipc_region_t *region, const char *name,
                   const char *own_path) {
  char target[PATH_BYTES];
  int status = shmipc_file_path(name, target, sizeof(target));
  if (status < 0) {
    return status;
  }
  char source[PROC_PATH_BYTES];
  proc_path(region->fd, source);
  bool has_path = own_path[0] != '\0';
  return linkat(AT_FDCWD, has_path ? own_path : source, AT_FDCWD, target,
                has_path ? 0 : AT_SYMLINK_FOLLOW) == 0
             ? 0
             : -errno;
}

static int fill_file(shmipc_region_t *region, const char *name,
                     const shmipc_region_options_t *options,
                     const shmipc_plan_t *plan) {
  int status = shmipc_file_allocate(region->fd, 0, plan->total_bytes);
  if (status < 0) {
    return status;
  }
  if (name == NULL) {
    int seals = F_SEAL_SHRINK | F_SEAL_SEAL;
    seals |= options->seal_growth ? F_SEAL_GROW : 0;
    if (fcntl(region->fd, F_ADD_SEALS, seals) < 0) {
      return -errno;
    }
  }
  region->num_slots = plan->num_slots;
  region->num_records = plan->num_records;
  region->page_bytes = plan->page_bytes;
  region->capacity_bytes = plan->capacity_bytes;
  region->data_offset = plan->data_offset;
  region->heap_offset = plan->heap_offset;
  region->heap_pages = plan->heap_pages;
  region->layout_tag = options->layout_tag;
  status = shmipc_region_map(region, plan->total_bytes);
  if (status == 0) {
    status = shmipc_region_build(region, name, options, plan);
  }
  if (status == 0) {
    shmipc_region_set_ready(region);
  }
  return status;
}

int shmipc_file_create(const char *name, const shmipc_region_options_t *options,
                       shmipc_region_t **out_region) {
  shmipc_plan_t plan;
  int status = shmipc_plan_make(options, &plan);
  if (status < 0) {
    return status;
  }
  shmipc_region_t *region = shmipc_region_new(options);
  if (region == NULL) {
    return -ENOMEM;
  }
  char own_path[PATH_BYTES] = "";
  status = name == NULL ? create_memfd(region, options)
                        : create_unnamed(region, options, own_path);
  if (status == 0) {
    status = fill_file(region, name, options, &plan);
  }
  if (status == 0 && name != NULL) {
    status = publish(region, name, own_path);
  }
  if (own_path[0] != '\0') {
    unlink(own_path);
    shmipc_presence_unlock(region, SHMIPC_LOCK_GATE);
  }
  if (status < 0) {
    shmipc_region_discard(region);
    return status;
  }
  *out_region = region;
  return 0;
}

static int check_file(const shmipc_region_t *region,
                      const shmipc_region_options_t *options,
                      struct stat *out_stat) {
  if (fstat(region->fd, out_stat) < 0) {
    return -errno;
  }
  if (!S_ISREG(out_stat->st_mode)) {
    return -EPROTO;
  }
  if (!options->allow_other_owner && out_stat->st_uid != geteuid() &&
      out_stat->st_uid != 0) {
    return -EPERM;
  }
  return 0;
}

// read(2), so that a file that gets shorter now is no SIGBUS.
static int read_header(int fd, shmipc_header_t *out_header) {
  ssize_t len = pread(fd, out_header, sizeof(*out_header), 0);
  if (len < 0) {
    return -errno;
  }
  return len == (ssize_t)sizeof(*out_header) ? 0 : -EPROTO;
}

// With the gate held: believes the header as far as it must, maps, takes a
// slot.
static int attach_locked(shmipc_region_t *region,
                         const shmipc_region_options_t *options) {
  struct stat file;
  shmipc_header_t header;
  int status = read_header(region->fd, &header);
  if (status == 0 && fstat(region->fd, &file) < 0) {
    status = -errno;
  }
  if (status == 0) {
    status =
        shmipc_header_accept(&header, (uint64_t)file.st_size, options, region);
  }
  if (status == 0) {
    status = shmipc_region_map(region, (uint64_t)file.st_size);
  }
  if (status < 0) {
    return status;
  }
  if (region->read_only) {
    return shmipc_presence_try_lock(region, SHMIPC_LOCK_READERS);
  }
  return shmipc_slot_take(region);
}

// -EAGAIN: the name went away, or is another file's by now.
static int attach_named(shmipc_region_t *region, const char *path,
                        const shmipc_region_options_t *options) {
  struct stat file;
  int status = open_into(
      region, path, (options->read_only ? O_RDONLY : O_RDWR) | O_NOFOLLOW, 0);
  if (status == 0) {
    status = check_file(region, options, &file);
  }
  if (status == 0) {
    status = shmipc_gate_lock(region, SHMIPC_GATE_WAIT_NS);
  }
  if (status < 0) {
    return status;
  }
  if (fstat(region->fd, &file) < 0) {
    status = -errno;
  } else {
    status = file.st_nlink == 0 ? -EAGAIN : attach_locked(region, options);
  }
  shmipc_gate_unlock(region);
  return status;
}

int shmipc_file_open(const char *name, const shmipc_region_options_t *options,
                     shmipc_region_t **out_region) {
  char path[PATH_BYTES];
  int status = shmipc_file_path(name, path, sizeof(path));
  if (status < 0) {
    return status;
  }
  status = -EAGAIN;
  for (int i = 0; i < ATTEMPTS && status == -EAGAIN; i++) {
    shmipc_region_t *region = shmipc_region_new(options);
    if (region == NULL) {
      return -ENOMEM;
    }
    status = attach_named(region, path, options);
    if (status == 0) {
      *out_region = region;
      return 0;
    }
    shmipc_region_discard(region);
  }
  return status == -EAGAIN ? -EBUSY : status;
}

// Opens the file behind a descriptor anew, so that locks are ours alone.
static int reopen(shmipc_region_t *region, int descriptor,
                  const shmipc_region_options_t *options) {
  // Files in memory know of seals.
  int seals = fcntl(descriptor, F_GET_SEALS);
  if (seals < 0) {
    return -errno;
  }
  char path[PROC_PATH_BYTES];
  proc_path(descriptor, path);
  int status =
      open_into(region, path, options->read_only ? O_RDONLY : O_RDWR, 0);
  struct stat file;
  if (status == 0) {
    status = check_file(region, options, &file);
  }
  if (status < 0) {
    return status;
  }
  bool is_sealed = (seals & F_SEAL_SHRINK) != 0;
  region->backend =
      is_sealed || file.st_nlink == 0 ? SHMIPC_MEMFD : SHMIPC_POSIX;
  return is_sealed || file.st_nlink != 0 ? 0 : -EPROTO;
}

int shmipc_region_open_fd(int descriptor,
                          const shmipc_region_options_t *options,
                          shmipc_region_t **out_region) {
  shmipc_region_options_t effective = {.backend = SHMIPC_MEMFD};
  if (options != NULL) {
    effective = *options;
    effective.backend = SHMIPC_MEMFD;
  }
  shmipc_region_t *region = shmipc_region_new(&effective);
  if (region == NULL) {
    return -ENOMEM;
  }
  int status = reopen(region, descriptor, &effective);
  if (status == 0) {
    status = shmipc_gate_lock(region, SHMIPC_GATE_WAIT_NS);
  }
  if (status == 0) {
    status = attach_locked(region, &effective);
    shmipc_gate_unlock(region);
  }
  if (status < 0) {
    shmipc_region_discard(region);
    return status;
  }
  *out_region = region;
  return 0;
}

int shmipc_file_unlink(const char *name) {
  char path[PATH_BYTES];
  int status = shmipc_file_path(name, path, sizeof(path));
  if (status < 0) {
    return status;
  }
  int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return -errno;
  }
  shmipc_header_t header;
  status = read_header(fd, &header);
  if (status == 0 && header.magic != SHMIPC_MAGIC) {
    status = -EPROTO;
  }
  close(fd);
  if (status == 0 && unlink(path) < 0) {
    status = -errno;
  }
  return status;
}

// The part of `collect` with the gate held.
static int collect_locked(int fd, const char *path) {
  struct stat file;
  struct stat named;
  if (fstat(fd, &file) < 0) {
    return -errno;
  }
  if (lstat(path, &named) < 0 || named.st_ino != file.st_ino ||
      named.st_dev != file.st_dev) {
    return 0;
  }
  // The gate is among them, but ours.
  int status = shmipc_presence_any(fd, 0, SHMIPC_LOCK_READERS + 1);
  if (status != 0) {
    return status < 0 ? status : 0;
  }
  return unlink(path) == 0 ? 1 : -errno;
}

int shmipc_file_collect(const char *name) {
  char path[PATH_BYTES];
  int status = shmipc_file_path(name, path, sizeof(path));
  if (status < 0) {
    return status;
  }
  // No fork: the child would keep the gate shut.
  shmipc_fork_block();
  int fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    status = errno == ENOENT ? 0 : -errno;
    shmipc_fork_unblock();
    return status;
  }
  shmipc_header_t header;
  bool is_temporary = strncmp(name, ".shmipc.", 8) == 0;
  status = is_temporary ? 0 : read_header(fd, &header);
  if (status == 0 && (is_temporary || header.magic == SHMIPC_MAGIC)) {
    status = shmipc_presence_fd_try_lock(fd, SHMIPC_LOCK_GATE, false);
    // Somebody is attaching: it lives.
    status = status == 0 ? collect_locked(fd, path)
                         : (status == -EAGAIN ? 0 : status);
  } else if (status == 0) {
    status = -EPROTO;
  }
  close(fd);
  shmipc_fork_unblock();
  return status;
}
