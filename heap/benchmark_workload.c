// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Allocation-bound programs that benchmark.py runs, each in a process of its
// own, on one malloc after the other: `benchmark_workload NAME [PERCENT]` does
// a fixed amount of work, or the given percentage of it. Which malloc it is on
// it does not know. Blocks are written as a program would, the first and last
// word and one of each page in between, and read by the thread that gets them
// from another one.
//
//   small      one thread, random lifetimes, most blocks of 16 to 512 bytes
//   pair       malloc(64) and free, nothing else
//   tree       binary trees built and torn down, blocks of one size
//   server     four threads with working sets that hand every fourth block over
//   handover   one thread allocates, another frees, in batches
//   exchange   two threads swap single blocks at random places
//   churn      short-lived threads, a few hundred blocks each
//   realloc    buffers that grow by half to 1 MiB, beside small ones
//   regrow     one buffer that grows by half to 64 MiB, written as it grows
//   medium     blocks of 0.5 to 32 KiB, random lifetimes
//   large      blocks of 64 KiB to 16 MiB
//   fragment   many small blocks, nine in ten freed at random, then other sizes

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  PAGE_BYTES = 4096,
  THREADS_MAX = 4,
};

static uint64_t percent = 100;

static size_t scaled(size_t count) {
  size_t result = count * percent / 100;
  return result > 0 ? result : 1;
}

// SplitMix64.
static uint64_t next(uint64_t *state) {
  uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
  z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
  return z ^ (z >> 31);
}

static size_t below(uint64_t *state, size_t limit) {
  return (size_t)(((next(state) >> 32) * limit) >> 32);
}

static void *check(void *ptr) {
  if (ptr == NULL) {
    fputs("benchmark_workload: out of memory\n", stderr);
    exit(1);
  }
  return ptr;
}

static void *block(size_t size_bytes) {
  unsigned char *bytes = check(malloc(size_bytes));
  memset(bytes, 1, 8);
  for (size_t i = PAGE_BYTES; i < size_bytes; i += PAGE_BYTES) {
    bytes[i] = 1;
  }
  memset(bytes + size_bytes - 8, 1, 8);
  return bytes;
}

// Reads and frees a block that another thread may have filled.
static void receive(unsigned char *bytes) {
  if (bytes == NULL) {
    return;
  }
  if (bytes[0] != 1) {
    fputs("benchmark_workload: a block lost its contents\n", stderr);
    exit(1);
  }
  free(bytes);
}

// As programs ask: mostly small, seldom large.
static size_t small_size(uint64_t *random) {
  uint64_t bits = next(random);
  size_t unit = (size_t)16 << (bits % 8 == 0 ? 3 + bits / 8 % 3 : bits % 3);
  return unit + (size_t)(bits >> 40) % unit;
}

// Replaces random blocks of `slots`, and frees them all in the end.
static void random_lifetimes(size_t num_slots, size_t num_steps, uint64_t seed,
                             size_t (*size)(uint64_t *)) {
  void **slots = check(calloc(num_slots, sizeof(*slots)));
  for (size_t i = 0; i < num_steps; ++i) {
    size_t slot = below(&seed, num_slots);
    free(slots[slot]);
    slots[slot] = block(size(&seed));
  }
  for (size_t i = 0; i < num_slots; ++i) {
    free(slots[i]);
  }
  free(slots);
}

static void run_small(void) {
  random_lifetimes(10000, scaled(12000000), 1, small_size);
}

static void run_pair(void) {
  for (size_t i = scaled(80000000); i > 0; --i) {
    void *volatile ptr = malloc(64);
    free(ptr);
  }
}

typedef struct node {
  struct node *left;
  struct node *right;
  uint64_t payload;
} node_t;

static node_t *tree_build(unsigned depth) {
  node_t *node = check(malloc(sizeof(*node)));
  *node = (node_t){.payload = depth};
  if (depth > 0) {
    node->left = tree_build(depth - 1);
    node->right = tree_build(depth - 1);
  }
  return node;
}

static void tree_free(node_t *node) {
  if (node->left != NULL) {
    tree_free(node->left);
    tree_free(node->right);
  }
  free(node);
}

static void run_tree(void) {
  node_t *lasting = tree_build(19);
  for (size_t i = scaled(1000); i > 0; --i) {
    tree_free(tree_build(13));
  }
  tree_free(lasting);
}

typedef void *(*thread_body_t)(void *argument);

static void run_threads(size_t count, thread_body_t body) {
  pthread_t threads[THREADS_MAX];
  for (size_t i = 0; i < count; ++i) {
    if (pthread_create(&threads[i], NULL, body, (void *)(i + 1)) != 0) {
      fputs("benchmark_workload: no thread\n", stderr);
      exit(1);
    }
  }
  for (size_t i = 0; i < count; ++i) {
    pthread_join(threads[i], NULL);
  }
}

enum {
  SERVER_THREADS = 4,
  SHARED_SLOTS = 4096,
};
static _Atomic(void *) shared_slots[SHARED_SLOTS];

static void clear_shared_slots(void) {
  for (size_t i = 0; i < SHARED_SLOTS; ++i) {
    free(atomic_exchange(&shared_slots[i], NULL));
  }
}

static void *server_thread(void *argument) {
  enum {
    OWN_SLOTS = 4000
  };
  uint64_t random = (uintptr_t)argument;
  void **slots = check(calloc(OWN_SLOTS, sizeof(*slots)));
  for (size_t i = scaled(2500000); i > 0; --i) {
    void *fresh = block(small_size(&random));
    if (i % 4 == 0) {
      size_t slot = below(&random, SHARED_SLOTS);
      receive(atomic_exchange_explicit(&shared_slots[slot], fresh,
                                       memory_order_acq_rel));
    } else {
      size_t slot = below(&random, OWN_SLOTS);
      free(slots[slot]);
      slots[slot] = fresh;
    }
  }
  for (size_t i = 0; i < OWN_SLOTS; ++i) {
    free(slots[i]);
  }
  free(slots);
  return NULL;
}

static void run_server(void) {
  run_threads(SERVER_THREADS, server_thread);
  clear_shared_slots();
}

enum {
  BATCH_BLOCKS = 100,
  QUEUE_BATCHES = 256,
};

// A queue of batches. Its lock is taken once a batch, and who has to wait is
// woken when it is half full: this measures frees, not wake-ups.
static struct {
  pthread_mutex_t lock;
  pthread_cond_t half_full;
  void *blocks[QUEUE_BATCHES][BATCH_BLOCKS];
  size_t pushed;
  size_t popped;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER,
           .half_full = PTHREAD_COND_INITIALIZER};

// Waits while the queue has `count` batches. Lock held.
static void wait_while(size_t count) {
  while (queue.pushed - queue.popped == count) {
    pthread_cond_wait(&queue.half_full, &queue.lock);
  }
}

static void tell(bool is_last) {
  if (is_last || queue.pushed - queue.popped == QUEUE_BATCHES / 2) {
    pthread_cond_signal(&queue.half_full);
  }
}

static void *produce(uint64_t random) {
  void *batch[BATCH_BLOCKS];
  for (size_t i = scaled(150000); i > 0; --i) {
    for (size_t j = 0; j < BATCH_BLOCKS; ++j) {
      batch[j] = block(16 + below(&random, 112));
    }
    pthread_mutex_lock(&queue.lock);
    wait_while(QUEUE_BATCHES);
    memcpy(queue.blocks[queue.pushed++ % QUEUE_BATCHES], batch, sizeof(batch));
    tell(i == 1);
    pthread_mutex_unlock(&queue.lock);
  }
  return NULL;
}

static void *consume(void) {
  void *batch[BATCH_BLOCKS];
  for (size_t i = scaled(150000); i > 0; --i) {
    pthread_mutex_lock(&queue.lock);
    wait_while(0);
    memcpy(batch, queue.blocks[queue.popped++ % QUEUE_BATCHES], sizeof(batch));
    tell(false);
    pthread_mutex_unlock(&queue.lock);
    for (size_t j = 0; j < BATCH_BLOCKS; ++j) {
      receive(batch[j]);
    }
  }
  return NULL;
}

static void *handover_thread(void *argument) {
  return (uintptr_t)argument == 1 ? produce(1) : consume();
}

static void run_handover(void) {
  run_threads(2, handover_thread);
}

static void *exchange_thread(void *argument) {
  uint64_t random = (uintptr_t)argument;
  for (size_t i = scaled(7000000); i > 0; --i) {
    void *fresh = block(16 + below(&random, 240));
    receive(
        atomic_exchange_explicit(&shared_slots[below(&random, SHARED_SLOTS)],
                                 fresh, memory_order_acq_rel));
  }
  return NULL;
}

static void run_exchange(void) {
  run_threads(2, exchange_thread);
  clear_shared_slots();
}

static void *churn_thread(void *argument) {
  random_lifetimes(200, 1000, (uintptr_t)argument, small_size);
  return NULL;
}

static void run_churn(void) {
  for (size_t i = scaled(4000); i > 0; --i) {
    run_threads(2, churn_thread);
  }
}

// Grows a buffer by half up to `limit_bytes`, writing what is new.
static void grow(size_t limit_bytes, bool among_others) {
  size_t size_bytes = 64;
  unsigned char *bytes = check(malloc(size_bytes));
  void *others[64];
  size_t num_others = 0;
  memset(bytes, 1, size_bytes);
  while (size_bytes < limit_bytes) {
    size_t old_bytes = size_bytes;
    size_bytes += size_bytes / 2;
    if (among_others) {
      others[num_others++] = block(32);
    }
    bytes = check(realloc(bytes, size_bytes));
    for (size_t i = old_bytes; i < size_bytes; i += 512) {
      bytes[i] = 1;
    }
  }
  free(bytes);
  while (num_others > 0) {
    free(others[--num_others]);
  }
}

static void run_realloc(void) {
  for (size_t i = scaled(6000); i > 0; --i) {
    grow(1 << 20, true);
  }
}

static void run_regrow(void) {
  for (size_t i = scaled(25); i > 0; --i) {
    grow(64 << 20, false);
  }
}

static size_t medium_size(uint64_t *random) {
  size_t unit = (size_t)512 << next(random) % 6;
  return unit + below(random, unit);
}

static void run_medium(void) {
  random_lifetimes(2000, scaled(4000000), 1, medium_size);
}

static void run_large(void) {
  enum {
    SLOTS = 40
  };
  uint64_t random = 1;
  void *slots[SLOTS] = {0};
  for (size_t i = scaled(6000); i > 0; --i) {
    size_t slot = below(&random, SLOTS);
    size_t unit = (size_t)65536 << next(&random) % 8;
    free(slots[slot]);
    slots[slot] = block(unit + below(&random, unit));
  }
  for (size_t i = 0; i < SLOTS; ++i) {
    free(slots[i]);
  }
}

static void run_fragment(void) {
  size_t count = scaled(1000000);
  uint64_t random = 1;
  void **slots = check(calloc(count, sizeof(*slots)));
  for (size_t round = 0; round < 3; ++round) {
    size_t base_bytes = (size_t)40 << round;
    for (size_t i = 0; i < count; ++i) {
      if (slots[i] == NULL) {
        slots[i] = block(base_bytes + below(&random, base_bytes));
      }
    }
    for (size_t i = 0; i < count; ++i) {
      if (below(&random, 10) != 0) {
        free(slots[i]);
        slots[i] = NULL;
      }
    }
  }
  for (size_t i = 0; i < count; ++i) {
    free(slots[i]);
  }
  free(slots);
}

static const struct {
  const char *name;
  void (*run)(void);
} workloads[] = {
    {"small", run_small},       {"pair", run_pair},
    {"tree", run_tree},         {"server", run_server},
    {"handover", run_handover}, {"exchange", run_exchange},
    {"churn", run_churn},       {"realloc", run_realloc},
    {"regrow", run_regrow},     {"medium", run_medium},
    {"large", run_large},       {"fragment", run_fragment},
};

int main(int argc, char **argv) {
  if (argc == 3) {
    percent = strtoull(argv[2], NULL, 10);
  }
  for (size_t i = 0; i < sizeof(workloads) / sizeof(workloads[0]); ++i) {
    if (argc >= 2 && strcmp(argv[1], workloads[i].name) == 0) {
      workloads[i].run();
      return 0;
    }
  }
  fputs("usage: benchmark_workload NAME [PERCENT]; NAME is one of", stderr);
  for (size_t i = 0; i < sizeof(workloads) / sizeof(workloads[0]); ++i) {
    fprintf(stderr, " %s", workloads[i].name);
  }
  fputs("\n", stderr);
  return 2;
}
