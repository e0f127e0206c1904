// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Runs a program and writes what it used, for benchmark.py:
//
//   benchmark_measure FILE PRELOAD COMMAND...
//
// writes "CPU_MICROSECONDS PEAK_KIB" of COMMAND to FILE and exits as it did.
// PRELOAD may be empty. The kernel counts towards a process's peak what it had
// before it executed the program, a copy of its parent: so the parent is this,
// which is small, and not an interpreter.

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static long long microseconds(struct timeval time) {
  return time.tv_sec * 1000000LL + time.tv_usec;
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fputs("usage: benchmark_measure FILE PRELOAD COMMAND...\n", stderr);
    return 2;
  }
  pid_t child = fork();
  if (child == 0) {
    if (argv[2][0] != '\0') {
      setenv("LD_PRELOAD", argv[2], 1);
    }
    execvp(argv[3], argv + 3);
    perror(argv[3]);
    _exit(127);
  }
  int status;
  struct rusage usage;
  if (child < 0 || wait4(child, &status, 0, &usage) != child) {
    perror("benchmark_measure");
    return 2;
  }
  FILE *file = fopen(argv[1], "w");
  if (file == NULL ||
      fprintf(file, "%lld %ld\n",
              microseconds(usage.ru_utime) + microseconds(usage.ru_stime),
              usage.ru_maxrss) < 0 ||
      fclose(file) != 0) {
    perror(argv[1]);
    return 2;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
