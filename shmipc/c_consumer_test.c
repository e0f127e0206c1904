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
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
    return 77;
  }
  for (int i = 0; i < 1000; i++) {
    status |= everything_once(region, board);
  }
  syscall(SYS_exit, status == 0 ? 0 : 1);
  return 1;
}

int main(void) {
  shmipc_region_options_t options = {
      .backend = SHMIPC_MEMFD,
      .size_bytes = sizeof(board_t),
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
