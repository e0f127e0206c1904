// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A private heap without a kernel: all its memory is a static buffer. The
// example forbids itself every system call but write and exit before it makes
// the heap, so that it would be killed if the heap made one.

#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "heap/private_heap.h"

static unsigned char memory[64 << 10];

static const heap_options_t options = {
    .strategy = HEAP_TLSF,  // No call takes long, whatever was done before.
    .buffer = memory,
    .buffer_bytes = sizeof(memory),
    .single_threaded = true,
};

// A queue of messages of different lengths.
typedef struct message {
  struct message *next;
  size_t len;
  char text[];
} message_t;

static message_t *message_create(heap_t *heap, const char *text) {
  size_t len = strlen(text);
  message_t *message = heap_alloc_in(heap, sizeof(*message) + len);
  if (message != NULL) {
    message->next = NULL;
    message->len = len;
    memcpy(message->text, text, len);
  }
  return message;
}

// Returns how many messages fit.
static size_t fill(heap_t *heap) {
  message_t *first = NULL;
  size_t count = 0;
  message_t *message = message_create(heap, "a message like others");
  for (; message != NULL; ++count) {
    message->next = first;
    first = message;
    message = message_create(heap, "a message like others");
  }
  while (first != NULL) {
    message_t *next = first->next;
    heap_free_in(heap, first);
    first = next;
  }
  return count;
}

static int run(void) {
  heap_t *heap = heap_create(&options);
  if (heap == NULL) {
    return 1;
  }
  size_t count = fill(heap);
  heap_private_stats_t stats;
  heap_stats_get_in(heap, &stats);
  int is_good = count > 1000 && fill(heap) == count && stats.num_live == 0 &&
                stats.max_steps <= HEAP_TLSF_STEPS_MAX &&
                heap_check_in(heap) == NULL;
  heap_destroy(heap);
  return is_good ? 0 : 2;
}

int main(void) {
  // The strict mode: read, write, _exit and sigreturn.
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
    perror("prctl");
    return 1;
  }
  int result = run();
  static const char good[] = "as many messages the second time\n";
  static const char bad[] = "not as it should be\n";
  ssize_t written = result == 0 ? write(STDOUT_FILENO, good, sizeof(good) - 1)
                                : write(STDERR_FILENO, bad, sizeof(bad) - 1);
  (void)written;
  // _exit() would call exit_group, which the mode forbids.
  syscall(SYS_exit, result);
}
