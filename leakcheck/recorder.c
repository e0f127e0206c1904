// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The hooks of the heap, and what is interposed to know of ends: of threads, of
// the process, of loaded objects.
//
// A hook marks its thread busy, finds the thread's state, appends one record to
// the thread's own stream and leaves: no lock, no atomic read-modify-write, no
// system call but when a stack or an object is met for the first time.
//
//   malloc(24)  ->  heap  ->  on_alloc(p, 24, 32)
//                               unwind_capture      frames a b c d
//                               stack_table_intern  a b as last time; c, d
//                               heaplog_append_alloc
//
// Threads use one of two paths:
//   - the usual one, a stream of their own;
//   - the shared stream, under a lock that is given up rather than waited for:
//     for a signal handler that interrupted its thread inside the recorder, for
//     a thread whose own stream is closed, and for maps and unmaps of a thread
//     that has no stream yet. Closing is the last thing that thread-specific
//     data can do (the destructor asks to be called again for as many rounds as
//     there are); libc frees some blocks after that. These events have no
//     stack. An event that cannot get the lock is counted as lost, and the log
//     says so.
//
// on_map and on_unmap come with the heap's central lock held, and must not
// allocate. Opening a stream may: it asks libc to call us at the thread's end,
// and pthread_setspecific allocates for the keys from the 32nd on. Before our
// key exists (only while the first libraries start) it does not ask, and the
// process's first event, which is a map, gets a stream of its own.
//
// Order: a free is stamped and appended before the heap makes the block free,
// an allocation after it is a block. CLOCK_MONOTONIC agrees between processors.

#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "heap/heap.h"
#include "leakcheck/process_info.h"
#include "leakcheck/recorder_process.h"
#include "leakcheck/recorder_stack.h"

#define RECORDER_EXPORT __attribute__((visibility("default")))
// In which call of a thread's destructor its stream is closed. ThreadSanitizer
// drops what it knows of a thread in the last round, so it must not run then.
#if defined(__SANITIZE_THREAD__)
#define EXIT_ROUNDS 1
#else
#define EXIT_ROUNDS PTHREAD_DESTRUCTOR_ITERATIONS
#endif
#define SAMPLE_INTERVAL_NS UINT64_C(10000000)
#define NO_BLOCK ((uintptr_t)0)

// Two words, so that they always fit what the loader keeps for initial-exec
// thread storage of objects that come late.
typedef struct recorder_tls {
  recorder_thread_t *thread;
  // Set while the thread is in the recorder. Read by its signal handlers.
  volatile bool busy;
  bool closed;  // Past the thread's own stream.
} recorder_tls_t;

static __thread recorder_tls_t recorder_tls
    __attribute__((tls_model("initial-exec")));

static pthread_key_t thread_exit_key;
static _Atomic bool has_thread_exit_key;

// One event on its way to a stream.
typedef struct event {
  heaplog_kind_t kind;
  uint64_t time_ns;
  uint64_t address;
  uint64_t size_bytes;
  uint64_t usable_bytes;
  uint32_t stack_id;
} event_t;

static inline bool append(heaplog_stream_t *stream, const event_t *event) {
  switch (event->kind) {
    case HEAPLOG_ALLOC:
      return heaplog_append_alloc(stream, event->time_ns, event->address,
                                  event->size_bytes, event->usable_bytes,
                                  event->stack_id);
    case HEAPLOG_FREE:
      return heaplog_append_free(stream, event->time_ns, event->address,
                                 event->stack_id);
    case HEAPLOG_RESIZE:
      return heaplog_append_resize(stream, event->time_ns, event->address,
                                   event->size_bytes, event->usable_bytes,
                                   event->stack_id);
    case HEAPLOG_MAP:
      return heaplog_append_map(stream, event->time_ns, event->address,
                                event->size_bytes);
    default:
      assert(event->kind == HEAPLOG_UNMAP);
      return heaplog_append_unmap(stream, event->time_ns, event->address,
                                  event->size_bytes);
  }
}

// --- Threads ---

static uint64_t current_tid(void) {
  return (uint64_t)syscall(SYS_gettid);
}

static void on_thread_exit(void *context) {
  recorder_thread_t *thread = context;
  recorder_process_t *process =
      atomic_load_explicit(&recorder_process_state, memory_order_acquire);
  if (++thread->exit_rounds < EXIT_ROUNDS) {
    // Others' destructors may still free; be last.
    (void)pthread_setspecific(thread_exit_key, thread);
    return;
  }
  int saved_errno = errno;
  recorder_tls.busy = true;
  recorder_tls.closed = true;
  recorder_tls.thread = NULL;
  heaplog_stream_close(thread->stream, recorder_process_now_ns());
  recorder_process_put_thread(process, thread);
  recorder_tls.busy = false;
  errno = saved_errno;
}

// Gives the thread a stream; NULL when it has to use the shared one. For
// `fresh_block` see recorder_process_describe(). Allocates nothing unless
// `has_key`.
static __attribute__((noinline)) recorder_thread_t *open_thread(
    recorder_process_t *process, uintptr_t fresh_block, bool has_key) {
  if (recorder_tls.closed) {
    return NULL;
  }
  recorder_thread_t *thread = recorder_tls.thread;
  if (thread == NULL) {
    thread = recorder_process_get_thread(process);
    if (thread == NULL) {
      return NULL;
    }
  }
  char name[HEAPLOG_THREAD_NAME_BYTES] = "";
  (void)prctl(PR_GET_NAME, name);
  heaplog_stream_t *stream;
  if (heaplog_stream_open(process->writer, recorder_process_now_ns(),
                          current_tid(), name, &stream) != 0) {
    recorder_process_put_thread(process, thread);
    recorder_tls.thread = NULL;
    return NULL;
  }
  thread->stream = stream;
  thread->num_last = 0;
  unwind_thread_forget(&thread->unwind);
  recorder_tls.thread = thread;
  recorder_process_describe(process, stream, fresh_block);
  if (has_key) {
    // May allocate, when the program has many keys: a nested event.
    (void)pthread_setspecific(thread_exit_key, thread);
  }
  return thread;
}

// Makes the calling thread busy and returns its state; NULL when it has no
// stream of its own now. `*out_process` NULL: not recorded. With `heap_locked`
// nothing that may allocate is done.
static inline recorder_thread_t *enter(recorder_process_t **out_process,
                                       uintptr_t fresh_block,
                                       bool heap_locked) {
  recorder_tls.busy = true;
  atomic_signal_fence(memory_order_seq_cst);
  recorder_thread_t *thread = recorder_tls.thread;
  if (thread != NULL && thread->stream != NULL) {
    // Relaxed: this thread has seen it published before.
    *out_process =
        atomic_load_explicit(&recorder_process_state, memory_order_relaxed);
    return thread;
  }
  *out_process = recorder_process_start();
  bool has_key =
      atomic_load_explicit(&has_thread_exit_key, memory_order_acquire);
  if (*out_process == NULL || (heap_locked && has_key)) {
    return NULL;
  }
  return open_thread(*out_process, fresh_block, has_key);
}

static inline void leave(void) {
  atomic_signal_fence(memory_order_seq_cst);
  recorder_tls.busy = false;
}

// --- The shared stream ---

// Returns the shared stream, to be given back by unlocking `shared_lock`; NULL
// when it cannot be had.
static heaplog_stream_t *lock_shared(recorder_process_t *process,
                                     uint64_t time_ns) {
  if (!recorder_process_try_lock(&process->shared_lock)) {
    return NULL;
  }
  heaplog_stream_t *stream = process->shared_stream;
  if (stream == NULL &&
      heaplog_stream_open(process->writer, time_ns, process->pid, "(shared)",
                          &stream) == 0) {
    process->shared_stream = stream;
  }
  if (stream == NULL) {
    recorder_process_unlock(&process->shared_lock);
  }
  return stream;
}

static __attribute__((noinline)) void append_shared(recorder_process_t *process,
                                                    event_t *event) {
  event->time_ns = recorder_process_now_ns();
  heaplog_stream_t *stream = lock_shared(process, event->time_ns);
  if (stream == NULL) {
    atomic_fetch_add_explicit(&process->lost_count, 1, memory_order_relaxed);
    return;
  }
  (void)append(stream, event);
  recorder_process_unlock(&process->shared_lock);
}

// --- Events ---

// What is done now and then, when something happens anyway.
static __attribute__((noinline)) void append_sample(recorder_process_t *process,
                                                    heaplog_stream_t *stream,
                                                    uint64_t due_ns,
                                                    uint64_t now_ns) {
  if (!atomic_compare_exchange_strong_explicit(
          &process->next_sample_ns, &due_ns, now_ns + SAMPLE_INTERVAL_NS,
          memory_order_relaxed, memory_order_relaxed)) {
    return;  // Another thread does it.
  }
  uint64_t lost_count =
      atomic_exchange_explicit(&process->lost_count, 0, memory_order_relaxed);
  if (lost_count != 0) {
    (void)heaplog_append_lost(stream, now_ns, lost_count);
  }
  uint64_t resident_bytes = process_info_resident_bytes();
  if (resident_bytes != 0) {
    (void)heaplog_append_sample(stream, now_ns, resident_bytes);
  }
}

static inline void record(event_t event, bool with_stack) {
  int saved_errno = errno;
  recorder_process_t *process;
  if (recorder_tls.busy) {
    // A signal handler above a hook of this thread.
    process =
        atomic_load_explicit(&recorder_process_state, memory_order_acquire);
    if (process != NULL && process->writer != NULL) {
      append_shared(process, &event);
    }
    errno = saved_errno;
    return;
  }
  recorder_thread_t *thread =
      enter(&process, event.kind == HEAPLOG_ALLOC ? event.address : NO_BLOCK,
            event.kind == HEAPLOG_MAP || event.kind == HEAPLOG_UNMAP);
  if (thread != NULL) {
    if (with_stack) {
      event.stack_id = recorder_stack_capture(process, thread);
    }
    event.time_ns = recorder_process_now_ns();
    (void)append(thread->stream, &event);
    uint64_t due_ns =
        atomic_load_explicit(&process->next_sample_ns, memory_order_relaxed);
    if (event.time_ns >= due_ns) {
      append_sample(process, thread->stream, due_ns, event.time_ns);
    }
  } else if (process != NULL) {
    append_shared(process, &event);
  }
  leave();
  errno = saved_errno;
}

static void on_alloc(void *ptr, size_t size_bytes, size_t usable_bytes) {
  event_t event = {.kind = HEAPLOG_ALLOC,
                   .address = (uintptr_t)ptr,
                   .size_bytes = size_bytes,
                   .usable_bytes = usable_bytes};
  record(event, true);
}

static void on_free(void *ptr) {
  event_t event = {.kind = HEAPLOG_FREE, .address = (uintptr_t)ptr};
  record(event, false);
}

static void on_resize(void *ptr, size_t size_bytes, size_t usable_bytes) {
  event_t event = {.kind = HEAPLOG_RESIZE,
                   .address = (uintptr_t)ptr,
                   .size_bytes = size_bytes,
                   .usable_bytes = usable_bytes};
  record(event, true);
}

// These two are called with the heap's central lock held.
static void on_map(void *ptr, size_t size_bytes) {
  uintptr_t start = (uintptr_t)ptr;
  event_t event = {
      .kind = HEAPLOG_MAP, .address = start, .size_bytes = size_bytes};
  if (!recorder_process_is_new_child()) {
    record(event, false);
  }
  if (recorder_static.extent != NULL) {
    recorder_extent_add(recorder_static.extent, start, start + size_bytes);
  }
}

static void on_unmap(void *ptr, size_t size_bytes) {
  uintptr_t start = (uintptr_t)ptr;
  event_t event = {
      .kind = HEAPLOG_UNMAP, .address = start, .size_bytes = size_bytes};
  if (!recorder_process_is_new_child()) {
    record(event, false);
  }
  if (recorder_static.extent != NULL) {
    recorder_extent_remove(recorder_static.extent, start, start + size_bytes);
  }
}

const heap_hooks_t heap_initial_hooks = {
    .on_alloc = on_alloc,
    .on_free = on_free,
    .on_resize = on_resize,
    .on_map = on_map,
    .on_unmap = on_unmap,
};

// --- Ends ---

static void append_end(recorder_process_t *process, heaplog_stream_t *stream) {
  uint64_t now_ns = recorder_process_now_ns();
  uint64_t due_ns =
      atomic_load_explicit(&process->next_sample_ns, memory_order_relaxed);
  append_sample(process, stream, due_ns, now_ns);
  (void)heaplog_append_end(stream, now_ns);
}

// Appends END, once. Later events are still recorded: other threads run on, and
// libc frees what it has after all exit handlers.
static void end_log(void) {
  int saved_errno = errno;
  recorder_process_t *process =
      atomic_load_explicit(&recorder_process_state, memory_order_acquire);
  if (recorder_tls.busy || process == NULL || process->writer == NULL ||
      (uint64_t)syscall(SYS_getpid) != process->pid) {
    // _exit in a signal handler above a hook; nothing is recorded, as in a
    // forked child that never allocated; or this is a vfork child that could
    // not execute a program: it ends, but not its parent, whose log this is.
    return;
  }
  recorder_thread_t *thread = enter(&process, NO_BLOCK, false);
  if (process == NULL ||
      atomic_exchange_explicit(&process->ended, 1, memory_order_relaxed) != 0) {
    // Another thread is exiting too.
  } else if (thread != NULL) {
    append_end(process, thread->stream);
  } else {
    // The last thread of a process whose main thread is gone.
    heaplog_stream_t *stream = lock_shared(process, recorder_process_now_ns());
    if (stream != NULL) {
      append_end(process, stream);
      recorder_process_unlock(&process->shared_lock);
    }
  }
  leave();
  errno = saved_errno;
}

static void end_log_at_exit(void *context) {
  (void)context;
  end_log();
}

// The C++ ABI's atexit. With no object named, the handler is not called when
// that object's destructors run, but when its turn comes: registered before
// main's libc start code registered the loader's destructors, that is after
// them all.
extern int __cxa_atexit(void (*function)(void *), void *argument, void *object);
extern int __cxa_at_quick_exit(void (*function)(void *), void *object);

static __attribute__((constructor)) void start(void) {
  recorder_process_t *process;
  recorder_thread_t *thread = enter(&process, NO_BLOCK, false);
  leave();
  if (process == NULL) {
    return;
  }
  (void)__cxa_atexit(end_log_at_exit, NULL, NULL);
  (void)__cxa_at_quick_exit(end_log_at_exit, NULL);
  if (pthread_key_create(&thread_exit_key, on_thread_exit) == 0) {
    atomic_store_explicit(&has_thread_exit_key, true, memory_order_release);
    (void)pthread_setspecific(thread_exit_key, thread);
  }
}

// _exit runs no handlers; forked children of interpreters and shells end so.
RECORDER_EXPORT void _exit(int status) {
  end_log();
  for (;;) {
    (void)syscall(SYS_exit_group, status);
  }
}

RECORDER_EXPORT void _Exit(int status) {
  _exit(status);
}

// Tells the log what is not loaded any more. (Objects that are unloaded without
// this function are noticed when another takes their place.)
RECORDER_EXPORT int dlclose(void *handle) {
  static _Atomic(void *) next;
  void *function = atomic_load_explicit(&next, memory_order_relaxed);
  if (function == NULL) {
    function = dlsym(RTLD_NEXT, "dlclose");
    atomic_store_explicit(&next, function, memory_order_relaxed);
  }
  int (*next_dlclose)(void *);
  memcpy(&next_dlclose, &function, sizeof(next_dlclose));
  int result = next_dlclose(handle);
  int saved_errno = errno;
  if (!recorder_tls.busy) {
    recorder_process_t *process;
    recorder_thread_t *thread = enter(&process, NO_BLOCK, false);
    if (thread != NULL) {
      recorder_stack_sweep(process, thread);
    }
    leave();
  }
  errno = saved_errno;
  return result;
}
