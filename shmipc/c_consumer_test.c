// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The public headers from C, as README.md has them. And that what is
// uncontended makes no system call: a child that may make none but write and
// exit does all of it.

#include <errno.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shmipc/channel.h"
#include "shmipc/event.h"
#include "shmipc/mutex.h"
#include "shmipc/region.h"
#include "shmipc/registry.h"
#include "shmipc/rwlock.h"
#include "shmipc/semaphore.h"

typedef struct board {
  shmipc_mutex_t mutex;
  shmipc_condition_t changed;
  uint64_t score;
  shmipc_rwlock_t rwlock;
  shmipc_semaphore_t semaphore;
} board_t;

static int add(shmipc_region_t *region, board_t *board, uint64_t points) {
  int status = shmipc_mutex_lock(region, &board->mutex, SHMIPC_FOREVER);
  if (status == -EOWNERDEAD) {
    // The last owner died with it: nothing here can be half done.
    status = shmipc_mutex_consistent(region, &board->mutex);
  }
  if (status < 0) {
    return status;
  }
  board->score += points;
  (void)shmipc_condition_broadcast(region, &board->changed);
  return shmipc_mutex_unlock(region, &board->mutex);
}

static int wait_for(shmipc_region_t *region, board_t *board, uint64_t score) {
  int status = shmipc_mutex_lock(region, &board->mutex, SHMIPC_FOREVER);
  while (status == 0 && board->score < score) {
    status = shmipc_condition_wait(region, &board->changed, &board->mutex,
                                   (int64_t)10 * 1000000000);
  }
  int unlocked = shmipc_mutex_unlock(region, &board->mutex);
  return status < 0 ? status : unlocked;
}

// As README.md has it.
static int talk(shmipc_port_t *sender, shmipc_port_t *receiver) {
  char text[64];
  size_t len = 0;
  int status = shmipc_port_send(sender, "hello", 5, SHMIPC_FOREVER);
  status |= shmipc_port_receive(receiver, text, sizeof(text), &len, 0);
  void *place;
  const void *seen;
  status |= shmipc_port_reserve(sender, 64, &place, 0);
  *(char *)place = 'x';
  status |= shmipc_port_commit(sender, 1);
  status |= shmipc_port_peek(receiver, &seen, &len, 0);
  status |= *(const char *)seen == 'x' && len == 1 ? 0 : -1;
  return status | shmipc_port_release(receiver);
}

static int open_both(shmipc_region_t *region, const char *name,
                     shmipc_channel_kind_t kind, shmipc_port_t **ports) {
  shmipc_channel_options_t options = {.kind = kind, .message_bytes = 64};
  shmipc_ref_t ref;
  int status = shmipc_channel_create(region, name, &options, &ref);
  if (status < 0 && status != -EEXIST) {
    return status;
  }
  void *channel = shmipc_ref_get(region, ref, 1);
  status = shmipc_port_open(region, channel, SHMIPC_SENDER, &ports[0]);
  return status < 0
             ? status
             : shmipc_port_open(region, channel, SHMIPC_RECEIVER, &ports[1]);
}

static int fail(const char *what, int status) {
  (void)fprintf(stderr, "%s: %s\n", what, shmipc_strerror(status));
  return 1;
}

static int everything_once(shmipc_region_t *region, board_t *board) {
  int status = add(region, board, 1);
  status |= shmipc_rwlock_read_lock(region, &board->rwlock, SHMIPC_FOREVER);
  status |= shmipc_rwlock_unlock(region, &board->rwlock);
  status |= shmipc_rwlock_write_lock(region, &board->rwlock, 0);
  status |= shmipc_rwlock_unlock(region, &board->rwlock);
  status |= shmipc_semaphore_post(region, &board->semaphore);
  status |= shmipc_semaphore_wait(region, &board->semaphore, SHMIPC_FOREVER);
  status |= shmipc_event_notify_one(region, &board->changed.event);
  return status;
}

// Forked, so not attached: opens by descriptor.
static int without_system_calls(int fd) {
  shmipc_region_t *region;
  int status = shmipc_region_open_fd(fd, NULL, &region);
  if (status < 0) {
    return fail("open_fd", status);
  }
  board_t *board = shmipc_region_data(region);
  // The thread's record is made with its first lock.
  status = everything_once(region, board);
  shmipc_port_t *one[2];
  shmipc_port_t *many[2];
  status |= open_both(region, "one", SHMIPC_SPSC, one);
  status |= open_both(region, "many", SHMIPC_MPMC, many);
  if (status < 0) {
    return fail("channels", status);
  }
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
    return 77;
  }
  for (int i = 0; i < 1000; i++) {
    status |= everything_once(region, board);
    status |= talk(one[0], one[1]);
    status |= talk(many[0], many[1]);
  }
  syscall(SYS_exit, status == 0 ? 0 : 1);
  return 1;
}

int main(void) {
  shmipc_region_options_t options = {
      .backend = SHMIPC_MEMFD,
      .size_bytes = sizeof(board_t),
      .heap_bytes = 1 << 20,
  };
  shmipc_region_t *region;
  int status = shmipc_region_create(NULL, &options, &region);
  if (status < 0) {
    return fail("create", status);
  }
  board_t *board = shmipc_region_data(region);
  int fd = shmipc_region_share_fd(region);
  if (fd < 0) {
    return fail("share_fd", fd);
  }
  pid_t child = fork();
  if (child == 0) {
    _exit(without_system_calls(fd));
  }
  int result = 0;
  if (waitpid(child, &result, 0) != child || !WIFEXITED(result)) {
    (void)fprintf(stderr, "the child made a system call: %d\n", result);
    return 1;
  }
  if (WEXITSTATUS(result) == 77) {
    (void)fprintf(stderr, "skipped: seccomp is not permitted\n");
  } else if (WEXITSTATUS(result) != 0) {
    return 1;
  } else if ((status = wait_for(region, board, 1001)) < 0) {
    return fail("wait_for", status);
  }
  status = shmipc_region_verify(region, NULL, NULL);
  if (status != 0) {
    return fail("verify", status);
  }
  (void)close(fd);
  shmipc_region_close(region);
  return shmipc_registry_list(NULL, NULL) < 0;
}
