// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the benchmarks of bufio share: flags, and a table of contenders that run
// in turn.

#ifndef MY_ALLOC_BUFIO_BUFIO_BENCHMARK_H_
#define MY_ALLOC_BUFIO_BUFIO_BENCHMARK_H_

#include <time.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace bufio_benchmark {

struct Flags {
  std::string dir = "/tmp";
  std::string only;
  size_t mib = 256;
  int rounds = 7;
  bool smoke = false;
};

extern Flags flags;
extern uint64_t sink;  // What loops computed, so that they are not removed.

constexpr size_t kStdioBuffer = 65536;
extern char stdio_buffer[kStdioBuffer];

[[noreturn]] void Die(const char *what);

double Seconds(clockid_t clock);

// CPU seconds, user and system, of the process.
double Timed(const std::function<void()> &work);

// A name in the folder of the flags.
std::string Path(const char *name);

// Opens a file, which is in the page cache, to be written over: nothing is
// allocated.
int OpenOver(const std::string &path);

struct Contender {
  std::string name;
  std::function<double()> run;  // Returns seconds.
  std::vector<double> seconds = {};

  double Median();
};

// A ratio that has to be reached: `faster` against `slower` as speeds.
struct Bar {
  std::string text;
  size_t faster;
  size_t slower;
  double at_least;
};

// Runs the contenders in turn, round after round, and prints medians and bars.
// `amount` is what one run does, in GiB or pieces.
void Compare(const char *title, const char *unit, double amount,
             std::vector<Contender> contenders, const std::vector<Bar> &bars);

// The parts, each in a file of its own.
void Lines(const std::string &text, double text_bytes);
void Records(const std::string &out, size_t bytes);
void Bytes(const std::string &text, double text_bytes, const std::string &out,
           size_t bytes);
void Numbers(size_t count);
void Commit(const std::string &out);

}  // namespace bufio_benchmark

#endif  // MY_ALLOC_BUFIO_BUFIO_BENCHMARK_H_
