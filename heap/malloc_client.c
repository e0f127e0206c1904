// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program that malloc_process_test starts in many ways: linked with this
// malloc, statically, with it preloaded, with little address space. It fills
// memory up to `megabytes`, or to its limit, with blocks of all sizes, twice,
// and uses malloc in constructors, at exit, and in threads.
//
//   malloc_client MEGABYTES [EXECS]
//
// With EXECS it first replaces itself so often, each time while its threads are
// in malloc.
//
// Exit code 0: all was well, and the malloc was this one.

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Weak: present where this malloc is linked or preloaded.
extern const char *heap_check(void) __attribute__((weak));
extern void *heap_alloc(size_t size_bytes) __attribute__((weak));

enum {
  BLOCKS_MAX = 200000
};

static void *blocks[BLOCKS_MAX];
static char *constructed;

__attribute__((constructor(101))) static void constructed_first(void) {
  constructed = malloc(1000);
}

static void at_exit(void) {
  free(constructed);
  constructed = malloc(100000);
  free(constructed);
}

static size_t size_of(size_t i) {
  // Mostly small; every hundredth medium, some with mappings of their own.
  size_t size = (i * 7919) % 2000;
  if (i % 100 == 0) {
    size = (i * 7919) % 200000;
  }
  return i % 5000 == 0 ? (size_t)5 << 20 : size + sizeof(size_t);
}

// Returns how many blocks fit.
static size_t fill(size_t max_bytes) {
  size_t total = 0;
  size_t count = 0;
  while (count < BLOCKS_MAX && total < max_bytes) {
    size_t size = size_of(count);
    blocks[count] = malloc(size);
    if (blocks[count] == NULL) {
      if (errno != ENOMEM) {
        exit(2);
      }
      break;
    }
    memset(blocks[count], (int)count, size);
    total += size;
    ++count;
  }
  return count;
}

static void verify_and_free(size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const unsigned char *bytes = blocks[i];
    size_t last = size_of(i) - 1;
    if (bytes[0] != (unsigned char)i || bytes[last] != (unsigned char)i) {
      exit(3);
    }
    free(blocks[i]);
  }
}

static void *thread_main(void *argument) {
  for (size_t i = 0; i < 10000; ++i) {
    void *ptr = malloc(size_of(i + 1) % 3000);
    free(realloc(ptr, 100 + i % 100));
  }
  return argument;
}

static void run_threads(void) {
  pthread_t threads[3];
  for (int i = 0; i < 3; ++i) {
    // Little address space: small stacks.
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    if (pthread_create(&threads[i], &attributes, thread_main, NULL) != 0) {
      exit(4);
    }
    pthread_attr_destroy(&attributes);
  }
  for (int i = 0; i < 3; ++i) {
    pthread_join(threads[i], NULL);
  }
}

static void *thread_until_exec(void *argument) {
  atomic_int *started = argument;
  for (size_t i = 0;; ++i) {
    free(malloc(size_of(i)));
    if (i == 100) {
      atomic_fetch_add(started, 1);
    }
  }
  return NULL;
}

// Starts the program again, in this process, as threads use malloc.
static void exec_again(char **argv, unsigned long execs) {
  static atomic_int started;
  char left[24];
  for (int i = 0; i < 3; ++i) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, thread_until_exec, &started) != 0) {
      exit(4);
    }
  }
  for (size_t i = 0; atomic_load(&started) < 3; ++i) {
    free(malloc(size_of(i)));
  }
  snprintf(left, sizeof(left), "%lu", execs - 1);
  execv("/proc/self/exe", (char *[]){argv[0], argv[1], left, NULL});
  exit(8);
}

int main(int argc, char **argv) {
  if ((argc != 2 && argc != 3) || constructed == NULL || atexit(at_exit) != 0) {
    return 5;
  }
  if (heap_alloc == NULL || heap_check == NULL) {
    return 6;
  }
  unsigned long execs = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
  if (execs > 0) {
    exec_again(argv, execs);
  }
  size_t max_bytes = strtoul(argv[1], NULL, 10) << 20;
  size_t first = fill(max_bytes);
  verify_and_free(first);
  malloc_trim(0);  // The stacks need addresses as well.
  run_threads();
  size_t second = fill(max_bytes);
  verify_and_free(second);
  printf("%zu blocks, then %zu\n", first, second);
  // What was freed can be used again, but for what lies between spans that
  // threads keep and is too short for a big block.
  if (first == 0 || second < first - first / 4 || heap_check() != NULL) {
    return 7;
  }
  return 0;
}
