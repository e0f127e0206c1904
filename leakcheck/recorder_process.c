// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// State comes in two kinds. What stays true in a forked child (options, caches
// of code addresses) is in ordinary memory. What belongs to one process (the
// log, its streams, what has been defined in it) is in memory that the kernel
// wipes when a child is forked, whatever way it is forked: the child finds the
// phase NEW and starts a log of its own at its first event. No atfork handler,
// so nothing depends on the order of handlers or on fork being called through
// libc, and no lock can be stranded: a child's locks are all free. A vfork
// child shares the memory, is the same thread to us, and does no harm.
//
// Starting happens inside the process's first allocation, before any
// constructor, often before libc is initialised. So: system calls through
// syscall(), no stdio, no getenv.
//
// Lock order: none. `pool_lock`, `shared_lock` and the module table's lock are
// held one at a time, and nothing that may block or allocate runs under them
// but an append.

#include "leakcheck/recorder_process.h"

#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "heap/heap.h"
#include "leakcheck/process_info.h"

#define MAX_STACK_NODES ((size_t)1 << 22)
#define MAX_LOG_NAMES 1000u
#define SLAB_BYTES ((size_t)256 << 10)
#define LOCK_SPINS 10000
#define NS_PER_SECOND UINT64_C(1000000000)

static_assert(HEAPLOG_PATH_BYTES_MAX == 4096, "as a message says");
static_assert(MAX_STACK_NODES <= HEAPLOG_STACK_ID_MAX, "ids must fit the log");

typedef enum recorder_phase {
  PHASE_NEW = 0,  // What a wiped page says.
  PHASE_STARTING,
  PHASE_RECORDING,
} recorder_phase_t;

recorder_static_t recorder_static;
_Atomic(recorder_process_t *) recorder_process_state;

uint64_t recorder_process_now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * NS_PER_SECOND + (uint64_t)time.tv_nsec;
}

bool recorder_process_try_lock(_Atomic uint32_t *lock) {
  for (int i = 0; i < LOCK_SPINS; i++) {
    // Acquire pairs with the release in unlock.
    if (atomic_exchange_explicit(lock, 1, memory_order_acquire) == 0) {
      return true;
    }
    sched_yield();
  }
  return false;
}

void recorder_process_unlock(_Atomic uint32_t *lock) {
  atomic_store_explicit(lock, 0, memory_order_release);
}

static void say(const char *const *parts, size_t count) {
  char line[HEAPLOG_PATH_BYTES_MAX + 512];
  size_t len = 0;
  for (size_t i = 0; i < count; i++) {
    size_t part = strlen(parts[i]);
    if (part > sizeof(line) - len - 1) {
      part = sizeof(line) - len - 1;
    }
    memcpy(line + len, parts[i], part);
    len += part;
  }
  line[len++] = '\n';
  (void)syscall(SYS_write, STDERR_FILENO, line, len);
}

// Maps memory that a forked child finds as it was; NULL when there is none.
static void *map_kept(size_t size_bytes) {
  void *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

// Maps memory that a forked child finds zeroed; NULL when that cannot be had.
static void *map_wiped(size_t size_bytes) {
  void *memory = map_kept(size_bytes);
  if (memory != NULL && madvise(memory, size_bytes, MADV_WIPEONFORK) != 0) {
    int error = errno;
    munmap(memory, size_bytes);
    errno = error;
    return NULL;
  }
  return memory;
}

// True when the file is a log of this very process, from before it executed
// the program it is running now.
static bool is_own_remnant(const char *path) {
  struct stat status;
  if (syscall(SYS_newfstatat, AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) !=
          0 ||
      !S_ISREG(status.st_mode) || status.st_uid != geteuid()) {
    return false;
  }
  // A file from an earlier process with this pid was last changed before this
  // process began. Process start times are in hundredths of a second.
  uint64_t changed_ns = (uint64_t)status.st_ctim.tv_sec * NS_PER_SECOND +
                        (uint64_t)status.st_ctim.tv_nsec;
  uint64_t start_ns = process_info_start_unix_ns();
  return start_ns != 0 && changed_ns + NS_PER_SECOND / 50 >= start_ns;
}

// A process that forks and executes another program begins a log in between
// (the shell allocates there). It says nothing about either program.
static void remove_remnants(uint64_t pid, char *path, size_t capacity) {
  for (unsigned attempt = 1; attempt <= MAX_LOG_NAMES; attempt++) {
    if (!recorder_options_log_name(&recorder_static.options, pid, true, attempt,
                                   path, capacity) ||
        syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0) {
      return;
    }
    if (is_own_remnant(path)) {
      (void)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    }
  }
}

// Takes a name that no file has: creates an empty file, which the writer
// replaces. Returns 0 or -errno.
static int take_log_name(uint64_t pid, bool forked, char *path,
                         size_t capacity) {
  for (unsigned attempt = 1; attempt <= MAX_LOG_NAMES; attempt++) {
    if (!recorder_options_log_name(&recorder_static.options, pid, forked,
                                   attempt, path, capacity)) {
      return -ENAMETOOLONG;
    }
    long fd = syscall(SYS_openat, AT_FDCWD, path,
                      O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) {
      (void)syscall(SYS_close, fd);
      return 0;
    }
    if (errno != EEXIST) {
      return -errno;
    }
  }
  return -EEXIST;
}

static void say_name_taken(uint64_t pid, const char *path, char *scratch,
                           size_t capacity) {
  if (recorder_options_per_process(&recorder_static.options) ||
      !recorder_options_log_name(&recorder_static.options, pid, false, 1,
                                 scratch, capacity) ||
      strcmp(scratch, path) == 0) {
    return;
  }
  const char *parts[] = {"leakcheck: ", scratch, " exists; writing ", path,
                         " (put %p into LEAKCHECK_LOG for a name per process)"};
  say(parts, sizeof(parts) / sizeof(parts[0]));
}

static int open_log(recorder_process_t *process, bool forked) {
  char *path = process->scratch;
  size_t capacity = HEAPLOG_PATH_BYTES_MAX;
  struct timespec unix_time;
  if (!forked) {
    remove_remnants(process->pid, path, capacity);
  }
  int result = take_log_name(process->pid, forked, path, capacity);
  if (result != 0) {
    return result;
  }
  if (!forked) {
    say_name_taken(process->pid, path, path + capacity, capacity);
  }
  clock_gettime(CLOCK_REALTIME, &unix_time);
  heaplog_writer_options_t options = {
      .path = path,
      .start_monotonic_ns = recorder_process_now_ns(),
      .start_unix_ns = (uint64_t)unix_time.tv_sec * NS_PER_SECOND +
                       (uint64_t)unix_time.tv_nsec,
      .pid = process->pid,
      .page_bytes = (uint64_t)sysconf(_SC_PAGESIZE),
  };
  return heaplog_writer_open(&options, &process->writer);
}

static void say_unrecorded(const char *what, const char *path, int error) {
  const char *reason = strerrordesc_np(error);
  const char *parts[] = {"leakcheck: ",
                         what,
                         path,
                         ": ",
                         reason == NULL ? "unknown error" : reason,
                         "; set LEAKCHECK_LOG to a file that can be created. "
                         "The program runs unrecorded."};
  say(parts, sizeof(parts) / sizeof(parts[0]));
}

// The part of starting that is done once, children included.
static bool start_static(void) {
  recorder_static_t *statics = &recorder_static;
  struct dl_find_object own;
  const char *error = recorder_options_read(&statics->options);
  if (statics->options.help) {
    (void)syscall(SYS_write, STDERR_FILENO, recorder_options_help,
                  strlen(recorder_options_help));
    (void)syscall(SYS_exit_group, 0);
  }
  if (error != NULL) {
    const char *parts[] = {"leakcheck: ", error,
                           " (LEAKCHECK_HELP=1 lists what there is); "
                           "its default is used."};
    say(parts, sizeof(parts) / sizeof(parts[0]));
  }
  if (statics->options.log[0] == '\0') {
    const char *parts[] = {
        "leakcheck: LEAKCHECK_LOG makes a path of more than 4,095 bytes. "
        "The program runs unrecorded."};
    say(parts, 1);
    return false;
  }
  if (_dl_find_object((void *)(uintptr_t)&recorder_process_start, &own) == 0) {
    statics->own_code.start = (uintptr_t)own.dlfo_map_start;
    statics->own_code.end = (uintptr_t)own.dlfo_map_end;
  }
  statics->stacks = stack_table_create(MAX_STACK_NODES);
  statics->unwind_cache = map_kept(unwind_cache_bytes());
  statics->extent = map_kept(sizeof(*statics->extent));
  if (statics->stacks == NULL || statics->unwind_cache == NULL ||
      statics->extent == NULL) {
    const char *parts[] = {
        "leakcheck: no memory for the recorder's tables. "
        "The program runs unrecorded."};
    say(parts, 1);
    return false;
  }
  return true;
}

// The part that each process does. Returns false when it is not recorded.
static bool start_process(recorder_process_t *process) {
  recorder_static_t *statics = &recorder_static;
  bool forked = statics->started;
  statics->started = true;
  if (forked) {
    heaplog_writer_forget(statics->writer);
    statics->writer = NULL;
    if (!statics->options.record_forks) {
      return false;
    }
  } else if (!start_static()) {
    return false;
  }
  // The system call: libc's getpid may be replaced, and is not needed early.
  process->pid = (uint64_t)syscall(SYS_getpid);
  process->is_child = forked;
  int result = open_log(process, forked);
  if (result != 0) {
    // A child's descriptors may be anything by now: it fails in silence.
    if (!forked) {
      say_unrecorded("cannot create the log ", process->scratch, -result);
    }
    return false;
  }
  statics->writer = process->writer;
  return true;
}

// Returns the state's memory, mapped at the first call.
static recorder_process_t *map_process(void) {
  // Acquire pairs with the release by which another thread published it.
  recorder_process_t *process =
      atomic_load_explicit(&recorder_process_state, memory_order_acquire);
  if (process != NULL) {
    return process;
  }
  // A privileged program must not write files where its caller says.
  recorder_process_t *fresh =
      getauxval(AT_SECURE) != 0 ? NULL : map_wiped(sizeof(*fresh));
  if (fresh == NULL) {
    const char *parts[] = {
        "leakcheck: needs Linux 4.14 or later and a program that is not "
        "set-user-ID. The program runs unrecorded."};
    say(parts, 1);
    atomic_store_explicit(&recorder_static.off, 1, memory_order_relaxed);
    return NULL;
  }
  if (!atomic_compare_exchange_strong_explicit(
          &recorder_process_state, &process, fresh, memory_order_acq_rel,
          memory_order_acquire)) {
    munmap(fresh, sizeof(*fresh));
    return process;
  }
  return fresh;
}

recorder_process_t *recorder_process_start(void) {
  if (atomic_load_explicit(&recorder_static.off, memory_order_relaxed) != 0) {
    return NULL;
  }
  recorder_process_t *process = map_process();
  if (process == NULL) {
    return NULL;
  }
  uint32_t phase = PHASE_NEW;
  if (atomic_compare_exchange_strong_explicit(
          &process->phase, &phase, PHASE_STARTING, memory_order_acquire,
          memory_order_acquire)) {
    if (!start_process(process)) {
      atomic_store_explicit(&recorder_static.off, 1, memory_order_relaxed);
    }
    atomic_store_explicit(&process->phase, PHASE_RECORDING,
                          memory_order_release);
  }
  while (atomic_load_explicit(&process->phase, memory_order_acquire) !=
         PHASE_RECORDING) {
    sched_yield();
  }
  return atomic_load_explicit(&recorder_static.off, memory_order_relaxed) != 0
             ? NULL
             : process;
}

bool recorder_process_is_new_child(void) {
  recorder_process_t *process =
      atomic_load_explicit(&recorder_process_state, memory_order_acquire);
  return recorder_static.started && process != NULL &&
         atomic_load_explicit(&process->phase, memory_order_acquire) ==
             PHASE_NEW;
}

typedef struct inheritance {
  heaplog_stream_t *stream;
  uint64_t time_ns;
  uintptr_t fresh_block;
} inheritance_t;

// What was asked for is not known any more, nor where: no stack.
static bool append_inherited(void *context, void *ptr, size_t usable_bytes) {
  inheritance_t *inheritance = context;
  if ((uintptr_t)ptr != inheritance->fresh_block) {
    (void)heaplog_append_alloc(inheritance->stream, inheritance->time_ns,
                               (uintptr_t)ptr, usable_bytes, usable_bytes,
                               STACK_TABLE_NONE);
  }
  return true;
}

// A child of fork has one thread, so nobody changes what is walked.
static void append_inheritance(heaplog_stream_t *stream,
                               uintptr_t fresh_block) {
  const recorder_extent_t *extent = recorder_static.extent;
  inheritance_t inheritance = {stream, recorder_process_now_ns(), fresh_block};
  for (size_t i = 0; i < extent->count; i++) {
    const recorder_range_t *range = &extent->ranges[i];
    (void)heaplog_append_map(stream, inheritance.time_ns, range->start,
                             range->end - range->start);
  }
  (void)heap_walk(append_inherited, &inheritance);
}

void recorder_process_describe(recorder_process_t *process,
                               heaplog_stream_t *stream,
                               uintptr_t fresh_block) {
  // Relaxed: only one may pass, nothing is published by it.
  if (atomic_exchange_explicit(&process->described, 1, memory_order_relaxed) !=
      0) {
    return;
  }
  char *command_line = process->scratch;
  ptrdiff_t len = process_info_read("/proc/self/cmdline", command_line,
                                    sizeof(process->scratch));
  char path[512];
  process_info_executable(path, sizeof(path));
  heaplog_append_process(stream, path, command_line, len < 0 ? 0 : (size_t)len);
  if (process->is_child) {
    append_inheritance(stream, fresh_block);
  }
}

recorder_thread_t *recorder_process_get_thread(recorder_process_t *process) {
  if (!recorder_process_try_lock(&process->pool_lock)) {
    return NULL;
  }
  if (process->free_threads == NULL) {
    recorder_thread_t *slab = map_wiped(SLAB_BYTES);
    for (size_t i = 0; slab != NULL && i < SLAB_BYTES / sizeof(*slab); i++) {
      slab[i].next_free = process->free_threads;
      process->free_threads = &slab[i];
    }
  }
  recorder_thread_t *thread = process->free_threads;
  if (thread != NULL) {
    process->free_threads = thread->next_free;
  }
  recorder_process_unlock(&process->pool_lock);
  return thread;
}

void recorder_process_put_thread(recorder_process_t *process,
                                 recorder_thread_t *thread) {
  // What was known of its stack is the next thread's to find out.
  thread->unwind.memory = (stack_memory_t){0};
  thread->stream = NULL;
  thread->exit_rounds = 0;
  if (recorder_process_try_lock(&process->pool_lock)) {
    thread->next_free = process->free_threads;
    process->free_threads = thread;
    recorder_process_unlock(&process->pool_lock);
  }
}
