// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/bufio_benchmark.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace bufio_benchmark {

Flags flags;
uint64_t sink;
char stdio_buffer[kStdioBuffer];

void Die(const char *what) {
  perror(what);
  exit(1);
}

double Seconds(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) +
         static_cast<double>(now.tv_nsec) * 1e-9;
}

std::string Path(const char *name) {
  return flags.dir + "/bufio_benchmark." + std::to_string(getpid()) + "." +
         name;
}

int OpenOver(const std::string &path) {
  int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (descriptor < 0) {
    Die(path.c_str());
  }
  return descriptor;
}

double Contender::Median() {
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

void Compare(const char *title, const char *unit, double amount,
             std::vector<Contender> contenders, const std::vector<Bar> &bars) {
  for (int round = 0; round < flags.rounds; round++) {
    for (Contender &contender : contenders) {
      contender.seconds.push_back(contender.run());
    }
  }
  printf("\n%s\n", title);
  for (Contender &contender : contenders) {
    double median = contender.Median();
    bool is_rate = strcmp(unit, "GiB/s") == 0;
    printf("  %-52s %9.2f %s   (%.2f to %.2f)\n", contender.name.c_str(),
           is_rate ? amount / median : median / amount * 1e9, unit,
           is_rate ? amount / contender.seconds.back()
                   : contender.seconds.front() / amount * 1e9,
           is_rate ? amount / contender.seconds.front()
                   : contender.seconds.back() / amount * 1e9);
  }
  for (const Bar &bar : bars) {
    double ratio =
        contenders[bar.slower].Median() / contenders[bar.faster].Median();
    printf("  %-4s %s: %.2f (bar %.2f)\n", ratio >= bar.at_least ? "ok" : "LOW",
           bar.text.c_str(), ratio, bar.at_least);
  }
  fflush(stdout);
}

double Timed(const std::function<void()> &work) {
  double start = Seconds(CLOCK_PROCESS_CPUTIME_ID);
  work();
  return Seconds(CLOCK_PROCESS_CPUTIME_ID) - start;
}

}  // namespace bufio_benchmark
