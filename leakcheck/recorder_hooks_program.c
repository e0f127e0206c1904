// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Calls the recorder's hooks itself, with addresses it makes up: so the
// recorder can be tested under sanitizers, which have a malloc of their own,
// and in signal handlers, where ours must not be called.
// `recorder_hooks_program MODE`; exits with 0 when all it can see is right.

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "heap/heap.h"

#define NOINLINE __attribute__((noinline))
#define NUM_THREADS 8
#define NUM_SLOTS 16
#define BLOCK_BYTES 64
// All rounds there are; ThreadSanitizer's thread ends in the last.
#if defined(__SANITIZE_THREAD__)
#define NUM_ROUNDS 3
#else
#define NUM_ROUNDS 4
#endif
#define REGION_BYTES ((size_t)1 << 30)

static const heap_hooks_t *hooks = &heap_initial_hooks;

static void *address_at(size_t region, size_t index) {
  return (void *)(((region + 1) << 32) + index * BLOCK_BYTES);
}

static void map_region(size_t region) {
  hooks->on_map(address_at(region, 0), REGION_BYTES);
}

// --- threads ---

static _Atomic(void *) slots[NUM_SLOTS];

static NOINLINE void alloc_below(int depth, void *block) {
  if (depth == 0) {
    hooks->on_alloc(block, 40, BLOCK_BYTES);
  } else {
    alloc_below(depth - 1, block);
  }
  __asm__ volatile("");
}

static void *exchange(void *argument) {
  size_t region = (size_t)(uintptr_t)argument;
  for (size_t i = 0; i < 20000; i++) {
    void *block = address_at(region, i);
    alloc_below((int)(i % 40), block);
    if (i % 5 == 0) {
      hooks->on_resize(block, 41, BLOCK_BYTES);
    }
    void *other = atomic_exchange(&slots[(i * 7 + region) % NUM_SLOTS], block);
    if (other != NULL) {
      hooks->on_free(other);
    }
  }
  return NULL;
}

static int run_threads(void) {
  pthread_t threads[NUM_THREADS];
  for (size_t i = 0; i < NUM_THREADS; i++) {
    map_region(i);
  }
  for (uintptr_t i = 0; i < NUM_THREADS; i++) {
    pthread_create(&threads[i], NULL, exchange, (void *)i);
  }
  for (int i = 0; i < NUM_THREADS; i++) {
    pthread_join(threads[i], NULL);
  }
  for (int i = 0; i < NUM_SLOTS; i++) {
    if (slots[i] != NULL) {
      hooks->on_free(slots[i]);
    }
  }
  return 0;
}

// --- signals ---

static volatile size_t num_signals;

static void handle_signal(int number) {
  (void)number;
  size_t i = num_signals;
  num_signals = i + 1;
  hooks->on_alloc(address_at(1, i), 48, BLOCK_BYTES);
  hooks->on_free(address_at(1, i));
}

// Prints how many times the handler ran.
static int run_signals(void) {
  struct sigaction action;
  struct itimerval interval = {{0, 50}, {0, 50}};
  memset(&action, 0, sizeof(action));
  action.sa_handler = handle_signal;
  map_region(0);
  map_region(1);
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &interval, NULL);
  for (size_t i = 0; i < 300000; i++) {
    alloc_below((int)(i % 10), address_at(0, i));
    hooks->on_free(address_at(0, i));
  }
  memset(&interval, 0, sizeof(interval));
  setitimer(ITIMER_REAL, &interval, NULL);
  printf("%zu\n", num_signals);
  return 0;
}

// --- late: while and after the recorder's own data of a thread goes ---

static pthread_key_t key;

static void alloc_late(void *argument) {
  static _Thread_local size_t round;
  size_t region = (size_t)(uintptr_t)argument;
  hooks->on_alloc(address_at(region, round), 48, BLOCK_BYTES);
  hooks->on_free(address_at(region, round));
  if (++round < NUM_ROUNDS) {
    pthread_setspecific(key, argument);
  }
}

static void *set_key(void *argument) {
  pthread_setspecific(key, argument);
  return NULL;
}

static int run_late(void) {
  pthread_t threads[NUM_THREADS];
  pthread_key_create(&key, alloc_late);
  for (size_t i = 1; i <= NUM_THREADS; i++) {
    map_region(i);
    pthread_create(&threads[i - 1], NULL, set_key, (void *)(uintptr_t)i);
  }
  for (int i = 0; i < NUM_THREADS; i++) {
    pthread_join(threads[i], NULL);
  }
  return 0;
}

// --- errno ---

static void *check_errno(void *argument) {
  bool *good = argument;
  // The first calls of a thread, which do the most.
  errno = 77;
  hooks->on_alloc(address_at(0, 1), 40, BLOCK_BYTES);
  *good = *good && errno == 77;
  hooks->on_resize(address_at(0, 1), 41, BLOCK_BYTES);
  hooks->on_free(address_at(0, 1));
  *good = *good && errno == 77;
  return NULL;
}

static int run_errno(void) {
  bool good = true;
  errno = 77;
  map_region(0);
  good = errno == 77;
  check_errno(&good);
  pthread_t thread;
  pthread_create(&thread, NULL, check_errno, &good);
  pthread_join(thread, NULL);
  errno = 77;
  hooks->on_unmap(address_at(0, 0), REGION_BYTES);
  return good && errno == 77 ? 0 : 1;
}

// --- long-log: a name that is too long, not in the kernel's environment ---

#define LONG_NAME_BYTES 50000

// Before the recorder starts, as a program may that is started with nothing.
static __attribute__((constructor(101))) void set_long_log(int argc,
                                                           char **argv) {
  static char name[LONG_NAME_BYTES];
  if (argc > 1 && strcmp(argv[1], "long-log") == 0) {
    memset(name, 'x', sizeof(name) - 1);
    setenv("LEAKCHECK_LOG", name, 1);
  }
}

static int run_long_log(void) {
  map_region(0);
  alloc_below(1, address_at(0, 1));
  return 0;
}

int main(int argc, char **argv) {
  const char *mode = argc > 1 ? argv[1] : "";
  if (strcmp(mode, "threads") == 0) {
    return run_threads();
  }
  if (strcmp(mode, "signals") == 0) {
    return run_signals();
  }
  if (strcmp(mode, "late") == 0) {
    return run_late();
  }
  if (strcmp(mode, "errno") == 0) {
    return run_errno();
  }
  if (strcmp(mode, "long-log") == 0) {
    return run_long_log();
  }
  fprintf(stderr, "%s: no mode \"%s\"\n", argv[0], mode);
  return 2;
}
