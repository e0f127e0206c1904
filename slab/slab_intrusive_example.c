// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// slab_intrusive: a cache inside the program's own static memory, for code that
// may not call malloc or enter the kernel: firmware, the inside of an
// allocator. Not for signal handlers.
//
// The cache's handle, its tables, the magazine's slots and all objects lie in
// one static array. In the first thread of a process that uses slab, as here,
// no function makes a system call: this program forbids all but write and exit
// to itself before it starts, and runs as a test. Other threads ask the kernel
// once each, for the heads of their magazines.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/seccomp.h>

#include "slab/slab.h"

typedef struct packet {
  struct packet *next;
  uint32_t length;
  unsigned char bytes[48];
} packet_t;

enum {
  NUM_PACKETS = 1000,
};

static unsigned char memory[SLAB_BUFFER_BYTES(sizeof(packet_t),
                                              _Alignof(packet_t), NUM_PACKETS)];

// Ends the process without exit handlers; the only call that is left.
static void finish(int status) {
  syscall(SYS_exit, status);
}

// Fills the cache, passes every packet on once, and gives all back.
static bool run(slab_cache_t *cache) {
  packet_t *queue = NULL;
  int count = 0;
  packet_t *packet;
  while ((packet = slab_alloc(cache)) != NULL) {
    packet->length = (uint32_t)count++;
    packet->next = queue;
    queue = packet;
  }
  if (count < NUM_PACKETS) {
    return false;
  }
  while (queue != NULL) {
    packet = queue;
    queue = packet->next;
    if (packet->length != (uint32_t)--count) {
      return false;
    }
    slab_free(cache, packet);
  }
  return slab_check(cache) == NULL;
}

int main(void) {
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
    finish(2);
  }
  slab_options_t options = {
      .name = "packets",
      .object_bytes = sizeof(packet_t),
      .align_bytes = _Alignof(packet_t),
      .buffer = memory,
      .buffer_bytes = sizeof(memory),
  };
  slab_cache_t *cache = slab_cache_create(&options);
  if (cache == NULL || !run(cache) || slab_cache_destroy(cache, 0) != 0) {
    finish(1);
  }
  finish(0);
}
