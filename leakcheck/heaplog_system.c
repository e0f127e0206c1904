// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// libc's open, close, pread, pwrite, fcntl and fallocate are cancellation
// points, so they go through syscall(2), which is not; and each entry restores
// errno, since free(3) must. mmap and munmap are libc's: thread sanitizers
// watch those to learn that memory has changed its owner.

#include "leakcheck/heaplog_system.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "offsets go to system calls in one register");

// Turns a result of syscall(2) into the kernel's, errno into what it was.
static long kernel_result(long result, int saved_errno) {
  if (result == -1) {
    result = -errno;
  }
  errno = saved_errno;
  return result;
}

static int system_open(const char *path, int flags, unsigned int mode) {
  int saved_errno = errno;
  return (int)kernel_result(
      syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, mode),
      saved_errno);
}

static int system_close(int descriptor) {
  int saved_errno = errno;
  return (int)kernel_result(syscall(SYS_close, descriptor), saved_errno);
}

static int system_unlink(const char *path) {
  int saved_errno = errno;
  return (int)kernel_result(syscall(SYS_unlinkat, AT_FDCWD, path, 0),
                            saved_errno);
}

static int system_stat(int descriptor, struct stat *out_stat) {
  int saved_errno = errno;
  return (int)kernel_result(fstat(descriptor, out_stat), saved_errno);
}

static int system_duplicate(int descriptor, int lowest) {
  int saved_errno = errno;
  return (int)kernel_result(
      syscall(SYS_fcntl, descriptor, F_DUPFD_CLOEXEC, lowest), saved_errno);
}

static int system_allocate(int descriptor, uint64_t offset,
                           uint64_t size_bytes) {
  int saved_errno = errno;
  return (int)kernel_result(
      syscall(SYS_fallocate, descriptor, 0, (long)offset, (long)size_bytes),
      saved_errno);
}

static int64_t system_read(int descriptor, void *bytes, size_t size_bytes,
                           uint64_t offset) {
  int saved_errno = errno;
  return kernel_result(
      syscall(SYS_pread64, descriptor, bytes, size_bytes, (long)offset),
      saved_errno);
}

static int64_t system_write(int descriptor, const void *bytes,
                            size_t size_bytes, uint64_t offset) {
  int saved_errno = errno;
  return kernel_result(
      syscall(SYS_pwrite64, descriptor, bytes, size_bytes, (long)offset),
      saved_errno);
}

static void *system_map_file(int descriptor, uint64_t offset, size_t size_bytes,
                             int *out_status) {
  int saved_errno = errno;
  void *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                      descriptor, (off_t)offset);
  if (memory == MAP_FAILED) {
    *out_status = -errno;
    memory = NULL;
  }
  errno = saved_errno;
  return memory;
}

static void *system_map_memory(size_t size_bytes) {
  int saved_errno = errno;
  void *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  errno = saved_errno;
  return memory == MAP_FAILED ? NULL : memory;
}

static void system_unmap(void *memory, size_t size_bytes) {
  int saved_errno = errno;
  munmap(memory, size_bytes);
  errno = saved_errno;
}

static int system_advise(void *memory, size_t size_bytes, int advice) {
  int saved_errno = errno;
  return (int)kernel_result(madvise(memory, size_bytes, advice), saved_errno);
}

static int system_directory(char *path, size_t capacity_bytes) {
  int saved_errno = errno;
  long result =
      kernel_result(syscall(SYS_getcwd, path, capacity_bytes), saved_errno);
  if (result < 0) {
    return (int)result;
  }
  // Linux says "(unreachable)/..." when the directory is outside our root.
  return path[0] == '/' ? 0 : -ENOENT;
}

static uint64_t system_file_size_limit(void) {
  int saved_errno = errno;
  struct rlimit limit = {.rlim_cur = RLIM_INFINITY};
  getrlimit(RLIMIT_FSIZE, &limit);
  errno = saved_errno;
  return limit.rlim_cur;
}

const heaplog_system_t heaplog_system_kernel = {
    .open = system_open,
    .close = system_close,
    .unlink = system_unlink,
    .stat = system_stat,
    .duplicate = system_duplicate,
    .allocate = system_allocate,
    .read = system_read,
    .write = system_write,
    .map_file = system_map_file,
    .map_memory = system_map_memory,
    .unmap = system_unmap,
    .advise = system_advise,
    .directory = system_directory,
    .file_size_limit = system_file_size_limit,
};
