// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program that forks while its threads allocate with a library's lock held,
// which the library's handlers take too (malloc_fork_plugin.c).

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

void plugin_work(void);

enum {
  THREADS = 2,
  FORKS = 500,
  ALARM_SECONDS = 60,
};

static atomic_bool end;

static void *work(void *argument) {
  while (!atomic_load(&end)) {
    plugin_work();
  }
  return argument;
}

int main(void) {
  pthread_t threads[THREADS];
  alarm(ALARM_SECONDS);  // Or a deadlock would last.
  for (int i = 0; i < THREADS; ++i) {
    if (pthread_create(&threads[i], NULL, work, NULL) != 0) {
      return 2;
    }
  }
  for (int i = 0; i < FORKS; ++i) {
    int status;
    pid_t child = fork();
    if (child == 0) {
      plugin_work();
      _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
      return 3;
    }
  }
  atomic_store(&end, true);
  for (int i = 0; i < THREADS; ++i) {
    pthread_join(threads[i], NULL);
  }
  return 0;
}
