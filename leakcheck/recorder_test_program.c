// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What recorder_test runs under libleakcheck.so: `recorder_test_program MODE`.
// Sizes are unusual so that the test finds its blocks among libc's.

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))
#define NUM_THREADS 8
#define NUM_SLOTS 64
#define NUM_EXCHANGES 20000
#define NUM_SHORT_THREADS 2000

// Keeps a block from the optimiser, which may remove a malloc whose block is
// only freed.
static void *keep(void *block) {
  if (block == NULL) {
    abort();
  }
  __asm__ volatile("" : "+r"(block));
  return block;
}

static NOINLINE void *alpha(size_t size_bytes) {
  return keep(malloc(size_bytes));
}

static NOINLINE void *beta(size_t size_bytes) {
  void *block = alpha(size_bytes);
  return keep(block);
}

static NOINLINE void *deep(int depth, size_t size_bytes) {
  void *block = depth == 0 ? alpha(size_bytes) : deep(depth - 1, size_bytes);
  return keep(block);
}

// --- exact: each form of allocation ---

static int run_exact(void) {
  void *aligned = NULL;
  for (int i = 0; i < 3; i++) {
    free(beta(70001));
  }
  (void)beta(70002);  // Leaked.
  free(keep(calloc(7, 10007)));
  free(keep(aligned_alloc(4096, 73728)));
  free(keep(memalign(64, 70004)));
  free(posix_memalign(&aligned, 256, 70005) == 0 ? keep(aligned) : NULL);
  free(keep(valloc(70006)));
  free(keep(reallocarray(NULL, 7, 10001)));
  char *text = keep(malloc(70008));
  memset(text, 'x', 70007);
  text[70007] = '\0';
  free(keep(strdup(text)));  // Another block of 70008.
  text = keep(realloc(text, 70018));
  text = keep(realloc(text, 700018));
  text = keep(realloc(text, 38));
  free(text);
  free(deep(20, 70031));
  free(deep(150, 70032));
  free(keep(malloc(0)));
  free(NULL);
  return 0;
}

// --- threads: blocks freed by other threads than they are from ---

static _Atomic(unsigned char *) slots[NUM_SLOTS];

static void *exchange(void *argument) {
  uint32_t random = (uint32_t)(uintptr_t)argument * 2654435761u + 1;
  char name[16];
  snprintf(name, sizeof(name), "exchange-%d", (int)(uintptr_t)argument);
  prctl(PR_SET_NAME, name);
  for (int i = 0; i < NUM_EXCHANGES; i++) {
    random = random * 1664525u + 1013904223u;
    size_t size_bytes = 16 + (random >> 8) % (i % 100 == 0 ? 100000 : 500);
    unsigned char *block = keep(malloc(size_bytes));
    memset(block, (int)size_bytes, size_bytes < 64 ? size_bytes : 64);
    if (i % 7 == 0) {
      block = keep(realloc(block, size_bytes * 2));
    }
    free(atomic_exchange(&slots[random % NUM_SLOTS], block));
  }
  return NULL;
}

static int run_threads(void) {
  pthread_t threads[NUM_THREADS];
  for (uintptr_t i = 0; i < NUM_THREADS; i++) {
    pthread_create(&threads[i], NULL, exchange, (void *)i);
  }
  for (int i = 0; i < NUM_THREADS; i++) {
    pthread_join(threads[i], NULL);
  }
  for (int i = 0; i < NUM_SLOTS; i++) {
    free(slots[i]);
  }
  return 0;
}

// --- thread-exits: blocks freed while a thread ends ---

static pthread_key_t early_key;
static pthread_key_t late_key;

static void free_late(void *block) {
  static __thread int round;
  if (++round < 3) {
    pthread_setspecific(late_key, block);
  } else {
    free(block);
  }
}

static void *live_shortly(void *argument) {
  pthread_setspecific(early_key, keep(malloc(70041)));
  pthread_setspecific(late_key, keep(malloc(70042)));
  return argument;
}

static int run_thread_exits(void) {
  pthread_key_create(&early_key, free);
  pthread_key_create(&late_key, free_late);
  for (int i = 0; i < NUM_SHORT_THREADS; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, live_shortly, NULL);
    pthread_join(thread, NULL);
  }
  return 0;
}

// --- many-keys: so many that the recorder's is not among the first ---

// Values of later keys are in memory that libc allocates.
#define NUM_EARLY_KEYS 40
// Far longer than it takes; a thread that waits for itself waits for ever.
#define MANY_KEYS_SECONDS 60

// Runs before the constructors of all libraries.
static void create_keys(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "many-keys") == 0) {
    for (int i = 0; i < NUM_EARLY_KEYS; i++) {
      pthread_key_t key;
      pthread_key_create(&key, NULL);
    }
  }
}

__attribute__((section(".preinit_array"),
               used)) static void (*const run_first)(int,
                                                     char **) = create_keys;

static void *map_first(void *argument) {
  free(alpha(70000171));
  return argument;
}

static int run_many_keys(void) {
  pthread_t thread;
  alarm(MANY_KEYS_SECONDS);
  pthread_create(&thread, NULL, map_first, NULL);
  pthread_join(thread, NULL);
  return 0;
}

// --- processes ---

static int wait_for(pid_t pid) {
  int status = -1;
  if (waitpid(pid, &status, 0) != pid) {
    return 99;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

static int run_fork(void) {
  void *parents = keep(malloc(70051));
  pid_t pid = fork();
  if (pid == 0) {
    free(parents);
    (void)beta(70052);
    exit(7);
  }
  int status = wait_for(pid);
  free(parents);
  (void)beta(70053);
  return status == 7 ? 0 : 1;
}

static void *fork_from_thread(void *argument) {
  *(int *)argument = run_fork();
  return NULL;
}

// Forks while other threads are inside malloc.
static int run_fork_threads(void) {
  pthread_t threads[NUM_THREADS];
  pthread_t forker;
  int result = 1;
  for (uintptr_t i = 0; i < NUM_THREADS; i++) {
    pthread_create(&threads[i], NULL, exchange, (void *)i);
  }
  for (int i = 0; i < 20; i++) {
    pthread_create(&forker, NULL, fork_from_thread, &result);
    pthread_join(forker, NULL);
    if (result != 0) {
      return result;
    }
  }
  for (int i = 0; i < NUM_THREADS; i++) {
    pthread_join(threads[i], NULL);
  }
  return 0;
}

static int run_fork_exec(const char *self) {
  pid_t pid = fork();
  if (pid == 0) {
    (void)beta(70061);
    execl(self, self, "exact", (char *)NULL);
    _exit(1);
  }
  return wait_for(pid);
}

static int run_fork_nothing(void) {
  pid_t pid = fork();
  if (pid == 0) {
    _exit(0);
  }
  return wait_for(pid);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static int run_vfork(const char *self) {
  pid_t pid = vfork();
  if (pid == 0) {
    execl("/nonexistent", "nonexistent", (char *)NULL);
    _exit(5);
  }
  if (wait_for(pid) != 5) {
    return 1;
  }
  pid = vfork();
  if (pid == 0) {
    execl(self, self, "exact", (char *)NULL);
    _exit(5);
  }
  int status = wait_for(pid);
  (void)beta(70071);
  return status;
}
#pragma GCC diagnostic pop

static int run_exec(const char *self) {
  (void)beta(70081);
  execl(self, self, "exact", (char *)NULL);
  return 1;
}

// --- ends ---

static void free_at_exit(void) {
  (void)beta(70091);
}

static __attribute__((destructor(101))) void free_in_destructor(void) {
  (void)beta(70092);
}

static __attribute__((constructor(101))) void alloc_in_constructor(void) {
  (void)beta(70093);
}

static int run_ends(void) {
  atexit(free_at_exit);
  return 0;
}

static void *exit_from_thread(void *argument) {
  (void)argument;
  (void)beta(70101);
  exit(0);
}

static int run_exit_in_thread(void) {
  pthread_t thread;
  pthread_create(&thread, NULL, exit_from_thread, NULL);
  pthread_join(thread, NULL);
  return 1;
}

static void *outlive_main(void *argument) {
  pthread_join(*(pthread_t *)argument, NULL);
  (void)beta(70111);
  return NULL;
}

static int run_main_thread_exit(void) {
  static pthread_t main_thread;
  pthread_t thread;
  main_thread = pthread_self();
  pthread_create(&thread, NULL, outlive_main, &main_thread);
  pthread_exit(NULL);
}

static int run_kill(void) {
  for (size_t i = 0; i < 100000; i++) {
    (void)alpha(24);
  }
  (void)beta(70121);
  raise(SIGKILL);
  return 1;
}

static int run_abort(void) {
  (void)beta(70122);
  abort();
}

// --- objects ---

static int run_plugin(const char *path) {
  for (size_t i = 0; i < 3; i++) {
    void *handle = dlopen(path, RTLD_NOW);
    if (handle == NULL) {
      fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
    void *symbol = dlsym(handle, "test_plugin_alloc");
    void *(*allocate)(size_t);
    memcpy(&allocate, &symbol, sizeof(allocate));
    (void)keep(allocate(70131 + i));
    dlclose(handle);
  }
  return 0;
}

static void *open_and_close(void *argument) {
  for (int i = 0; i < 200; i++) {
    void *handle = dlopen(argument, RTLD_NOW);
    if (handle == NULL) {
      abort();
    }
    dlclose(handle);
  }
  return NULL;
}

// Loading while other threads allocate with stacks not seen before.
static int run_plugin_threads(char *path) {
  pthread_t threads[NUM_THREADS];
  pthread_t loader;
  pthread_create(&loader, NULL, open_and_close, path);
  for (uintptr_t i = 0; i < NUM_THREADS; i++) {
    pthread_create(&threads[i], NULL, exchange, (void *)i);
  }
  for (int i = 0; i < 200; i++) {
    free(deep(i % 50, 70141));
  }
  for (int i = 0; i < NUM_THREADS; i++) {
    pthread_join(threads[i], NULL);
  }
  pthread_join(loader, NULL);
  return 0;
}

// --- descriptors ---

// As daemons do; and then the numbers are used for something else.
static int run_close_all(const char *path) {
  for (int fd = 3; fd < 1024; fd++) {
    close(fd);
  }
  (void)close_range(1024, ~0u, 0);
  for (int i = 0; i < 32; i++) {
    FILE *file = fopen(path, "w");
    if (file == NULL || fputs("untouched", file) < 0 || fflush(file) != 0) {
      return 1;
    }
  }
  for (size_t i = 0; i < 200000; i++) {
    (void)alpha(i % 1000);
  }
  (void)beta(70151);
  return 0;
}

int main(int argc, char **argv) {
  const char *mode = argc > 1 ? argv[1] : "";
  char *argument = argc > 2 ? argv[2] : NULL;
  const struct {
    const char *mode;
    int (*run)(void);
  } modes[] = {
      {"exact", run_exact},
      {"threads", run_threads},
      {"thread-exits", run_thread_exits},
      {"many-keys", run_many_keys},
      {"fork", run_fork},
      {"fork-threads", run_fork_threads},
      {"fork-nothing", run_fork_nothing},
      {"ends", run_ends},
      {"exit-in-thread", run_exit_in_thread},
      {"main-thread-exit", run_main_thread_exit},
      {"kill", run_kill},
      {"abort", run_abort},
  };
  for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
    if (strcmp(mode, modes[i].mode) == 0) {
      return modes[i].run();
    }
  }
  if (strcmp(mode, "fork-exec") == 0) {
    return run_fork_exec(argv[0]);
  }
  if (strcmp(mode, "vfork") == 0) {
    return run_vfork(argv[0]);
  }
  if (strcmp(mode, "exec") == 0) {
    return run_exec(argv[0]);
  }
  if (strcmp(mode, "plugin") == 0 && argument != NULL) {
    return run_plugin(argument);
  }
  if (strcmp(mode, "plugin-threads") == 0 && argument != NULL) {
    return run_plugin_threads(argument);
  }
  if (strcmp(mode, "close-all") == 0 && argument != NULL) {
    return run_close_all(argument);
  }
  if (strcmp(mode, "_exit") == 0) {
    (void)beta(70161);
    _exit(0);
  }
  if (strcmp(mode, "quick-exit") == 0) {
    (void)beta(70162);
    quick_exit(0);
  }
  fprintf(stderr, "%s: no mode \"%s\"\n", argv[0], mode);
  return 2;
}
