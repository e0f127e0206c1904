// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A handler of SIGBUS that mends faults in ranges it knows.
//
// The kernel raises SIGBUS in the thread that touched a page of a file mapping
// that the file does not have (it was cut), or could not read (the disk). The
// handler maps a page of zeros over the faulting one and returns; the
// instruction is run again and finds it. The fault is counted in the slot,
// which the owner looks at.
//
// A handler may not lock, and must not look at memory that another thread
// frees: slots are in chunks that are never freed, and hold the range itself.
// A range is two words; the owner changes them only while nobody touches the
// range, end first to 0, so a handler never combines words of two ranges: it
// reads end, start, end again.
//
// Faults elsewhere are passed to whoever was there before us. If that is the
// default action, writers of level `exit` are flushed first: whose handler came
// first, theirs or this one, makes no difference.

#include "bufio/fault_guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bufio/exit_signal.h"

#define SLOTS_PER_CHUNK 60

struct bufio_fault_slot {
  uintptr_t start;  // Written by the owner.
  uintptr_t end;    // 0: no range.
  uint64_t count;   // Written by handlers.
  int is_used;      // By exchange.
};

typedef struct fault_chunk {
  struct fault_chunk *next;  // Immutable.
  bufio_fault_slot_t slots[SLOTS_PER_CHUNK];
} fault_chunk_t;

static fault_chunk_t first_chunk;
static fault_chunk_t *chunks = &first_chunk;  // Pushed by compare-and-swap.
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct sigaction previous;  // Written by `once`, before the handler is.
static uintptr_t page_mask;

static bool guards(const bufio_fault_slot_t *slot, uintptr_t address) {
  // Acquire: pairs with the releases of `set`.
  uintptr_t end = __atomic_load_n(&slot->end, __ATOMIC_ACQUIRE);
  uintptr_t start = __atomic_load_n(&slot->start, __ATOMIC_ACQUIRE);
  return address >= start && address < end &&
         end == __atomic_load_n(&slot->end, __ATOMIC_ACQUIRE);
}

// Mends the fault, if it is in a range of ours.
static bool mend(uintptr_t address) {
  for (fault_chunk_t *chunk = __atomic_load_n(&chunks, __ATOMIC_ACQUIRE);
       chunk != NULL; chunk = chunk->next) {
    for (int i = 0; i < SLOTS_PER_CHUNK; i++) {
      bufio_fault_slot_t *slot = &chunk->slots[i];
      if (!guards(slot, address)) {
        continue;
      }
      // mmap is a bare system call; that POSIX does not list it as safe here is
      // for the sake of other systems.
      void *page = (void *)(address & page_mask);
      void *mended = mmap(page, ~page_mask + 1, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      if (mended == MAP_FAILED) {
        return false;
      }
      // Relaxed: the owner is the thread that faulted, or synchronises with it.
      __atomic_fetch_add(&slot->count, 1, __ATOMIC_RELAXED);
      return true;
    }
  }
  return false;
}

static void pass_on(int number, siginfo_t *info, void *context) {
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(number, info, context);
  } else if (previous.sa_handler == SIG_IGN && info->si_code <= 0) {
    return;  // Sent by somebody, and ignored. (A fault cannot be.)
  } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
    // The default action was ours to replace before `exit_signal` could.
    bufio_exit_die(number, info);
  } else {
    previous.sa_handler(number);
  }
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
  int saved_errno = errno;
  bool is_fault = info->si_code > 0;
  if (!is_fault || !mend((uintptr_t)info->si_addr)) {
    pass_on(number, info, context);
  }
  errno = saved_errno;
}

static void install(void) {
  page_mask = ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
  sigaction(SIGBUS, NULL, &previous);
  struct sigaction ours = {.sa_sigaction = on_bus_error,
                           .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
  sigemptyset(&ours.sa_mask);
  sigaction(SIGBUS, &ours, NULL);
}

static bufio_fault_slot_t *claim(fault_chunk_t *chunk) {
  for (int i = 0; i < SLOTS_PER_CHUNK; i++) {
    if (__atomic_exchange_n(&chunk->slots[i].is_used, 1, __ATOMIC_ACQUIRE) ==
        0) {
      return &chunk->slots[i];
    }
  }
  return NULL;
}

bufio_fault_slot_t *bufio_fault_guard_add(void) {
  pthread_once(&once, install);
  bufio_fault_slot_t *slot = NULL;
  fault_chunk_t *first = __atomic_load_n(&chunks, __ATOMIC_ACQUIRE);
  for (fault_chunk_t *chunk = first; chunk != NULL && slot == NULL;
       chunk = chunk->next) {
    slot = claim(chunk);
  }
  if (slot == NULL) {
    fault_chunk_t *chunk = calloc(1, sizeof(*chunk));
    if (chunk == NULL) {
      return NULL;
    }
    slot = claim(chunk);
    do {
      chunk->next = first;
      // Release: whoever finds the chunk finds it filled in.
    } while (!__atomic_compare_exchange_n(&chunks, &first, chunk, false,
                                          __ATOMIC_RELEASE, __ATOMIC_ACQUIRE));
  }
  __atomic_store_n(&slot->count, 0, __ATOMIC_RELAXED);
  return slot;
}

void bufio_fault_guard_set(bufio_fault_slot_t *slot, void *start, size_t len) {
  __atomic_store_n(&slot->end, 0, __ATOMIC_RELEASE);
  if (start != NULL) {
    __atomic_store_n(&slot->start, (uintptr_t)start, __ATOMIC_RELEASE);
    __atomic_store_n(&slot->end, (uintptr_t)start + len, __ATOMIC_RELEASE);
  }
}

uint64_t bufio_fault_guard_count(const bufio_fault_slot_t *slot) {
  return __atomic_load_n(&slot->count, __ATOMIC_RELAXED);
}

void bufio_fault_guard_remove(bufio_fault_slot_t *slot) {
  if (slot == NULL) {
    return;
  }
  bufio_fault_guard_set(slot, NULL, 0);
  __atomic_store_n(&slot->is_used, 0, __ATOMIC_RELEASE);
}
