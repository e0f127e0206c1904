// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does a line of text cost, next to the C and C++ libraries, to a loop by
// hand, and to reading without looking?

#include <fcntl.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "bufio/bufio_benchmark.h"
#include "bufio/reader.h"

namespace bufio_benchmark {
namespace {

void ReadPlain(const std::string &path) {
  uint64_t sum = 0;
  static char buffer[131072];
  int descriptor = open(path.c_str(), O_RDONLY);
  ssize_t count;
  while ((count = read(descriptor, buffer, sizeof(buffer))) > 0) {
    sum += static_cast<uint64_t>(count);
  }
  close(descriptor);
  sink += sum;
}

// The loop that somebody writes who knows how: read(2) and vector compares,
// the unfinished line moved to the front.
#if defined(__x86_64__)
__attribute__((target("avx2,bmi")))
#endif
void ReadByHand(const std::string &path) {
  uint64_t sum = 0;
  constexpr size_t kRead = 131072;
  static unsigned char buffer[2 * kRead + 64];
  int descriptor = open(path.c_str(), O_RDONLY);
  size_t kept = 0;
  ssize_t count;
  while ((count = read(descriptor, buffer + kept, kRead)) > 0) {
    const unsigned char *line = buffer;
    const unsigned char *end = buffer + kept + count;
#if defined(__x86_64__)
    const __m256i pattern = _mm256_set1_epi8('\n');
    for (const unsigned char *at = buffer; at < end; at += 32) {
      __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
      auto mask = static_cast<uint32_t>(
          _mm256_movemask_epi8(_mm256_cmpeq_epi8(part, pattern)));
      if (end - at < 32) {
        mask &= (1u << (end - at)) - 1;
      }
      while (mask != 0) {
        const unsigned char *stop = at + __builtin_ctz(mask);
        sum += static_cast<uint64_t>(stop - line) + *line;
        line = stop + 1;
        mask &= mask - 1;
      }
    }
#else
    const void *stop;
    while ((stop = memchr(line, '\n', static_cast<size_t>(end - line)))) {
      auto place = static_cast<const unsigned char *>(stop);
      sum += static_cast<uint64_t>(place - line) + *line;
      line = place + 1;
    }
#endif
    kept = static_cast<size_t>(end - line);
    memmove(buffer, line, kept);
  }
  close(descriptor);
  sink += sum;
}

void ReadLines(const std::string &path) {
  uint64_t sum = 0;
  bufio_reader_t reader;
  if (bufio_reader_open(&reader, path.c_str(), nullptr) != 0) {
    Die("bufio_reader_open");
  }
  bufio_slice_t line;
  while (bufio_reader_next_line(&reader, &line) > 0) {
    sum += line.len + *line.data;
  }
  bufio_reader_close(&reader);
  sink += sum;
}

void ReadGetline(const std::string &path, bool tuned) {
  uint64_t sum = 0;
  FILE *file = fopen(path.c_str(), "r");
  if (tuned) {
    setvbuf(file, stdio_buffer, _IOFBF, kStdioBuffer);
    __fsetlocking(file, FSETLOCKING_BYCALLER);
  }
  char *line = nullptr;
  size_t capacity = 0;
  ssize_t len;
  while ((len = getline(&line, &capacity, file)) >= 0) {
    sum += static_cast<uint64_t>(len) + static_cast<unsigned char>(*line);
  }
  free(line);
  fclose(file);
  sink += sum;
}

void ReadFgets(const std::string &path) {
  uint64_t sum = 0;
  FILE *file = fopen(path.c_str(), "r");
  char line[4096];
  while (fgets(line, sizeof(line), file) != nullptr) {
    sum += static_cast<unsigned char>(*line);
  }
  fclose(file);
  sink += sum;
}

void ReadStream(const std::string &path) {
  uint64_t sum = 0;
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    sum += line.size() + static_cast<unsigned char>(line[0]);
  }
  sink += sum;
}

}  // namespace

void Lines(const std::string &path, double bytes) {
  Compare("Lines of 16 to 100 bytes", "GiB/s", bytes / (1 << 30),
          {
              {"read(2) of 128 KiB, no lines",
               [&] {
                 return Timed([&] { ReadPlain(path); });
               }},
              {"read(2) and AVX2 by hand",
               [&] {
                 return Timed([&] { ReadByHand(path); });
               }},
              {"bufio_reader_next_line",
               [&] {
                 return Timed([&] { ReadLines(path); });
               }},
              {"getline",
               [&] {
                 return Timed([&] { ReadGetline(path, false); });
               }},
              {"getline, no locks, 64 KiB",
               [&] {
                 return Timed([&] { ReadGetline(path, true); });
               }},
              {"std::getline",
               [&] {
                 return Timed([&] { ReadStream(path); });
               }},
              {"fgets",
               [&] {
                 return Timed([&] { ReadFgets(path); });
               }},
          },
          {
              {"next_line / getline", 2, 3, 3.0},
              {"next_line / getline without locks, 64 KiB", 2, 4, 2.2},
              {"next_line / read(2)", 2, 0, 0.65},
              {"next_line / loop by hand", 2, 1, 0.9},
          });
}

}  // namespace bufio_benchmark
