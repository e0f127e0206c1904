// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "slab/compare_memory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "slab/compare_contenders.h"
#include "slab/slab.h"

namespace compare {
namespace {

// Of the process, but for pages of files: code that runs for the first time
// would count as well.
size_t ResidentBytes() {
  unsigned long pages = 0;
  unsigned long file_pages = 0;
  FILE *file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr ||
      std::fscanf(file, "%*u %lu %lu", &pages, &file_pages) != 2) {
    std::perror("/proc/self/statm");
    std::exit(1);
  }
  std::fclose(file);
  return (pages - file_pages) * 4096;
}

void InChild(const std::function<void()> &body) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    body();
    std::fflush(stdout);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
}

void ReportFootprint(size_t object_bytes, size_t count) {
  std::vector<void *> objects(count, &count);
  const size_t before = ResidentBytes();
  slab_cache_t *cache = MakeCache(object_bytes);
  for (void *&object : objects) {
    object = slab_alloc(cache);
    std::memset(object, 1, object_bytes);
  }
  const size_t full = ResidentBytes();
  for (void *object : objects) {
    slab_free(cache, object);
  }
  const size_t freed = ResidentBytes();
  slab_reap(cache);
  const size_t reaped = ResidentBytes();
  std::printf(
      "%3zu-byte objects, %zu: resident / payload %.4f; all freed: %.1f MiB, "
      "after slab_reap: %.1f KiB\n",
      object_bytes, count,
      static_cast<double>(full - before) /
          static_cast<double>(object_bytes * count),
      (static_cast<double>(freed) - static_cast<double>(before)) / 1048576,
      (static_cast<double>(reaped) - static_cast<double>(before)) / 1024);
}

void ReportManyCaches(size_t num_caches, size_t num_threads) {
  std::vector<std::thread> threads;
  std::atomic<size_t> num_ready{0};
  std::atomic<bool> go{false};
  std::atomic<bool> end{false};
  std::vector<slab_cache_t *> caches(num_caches);
  for (size_t i = 0; i < num_threads; ++i) {
    threads.emplace_back([&] {
      std::vector<void *> objects(num_caches, &caches);
      ++num_ready;
      while (!go) {
        std::this_thread::yield();
      }
      for (size_t j = 0; j < num_caches; ++j) {
        objects[j] = slab_alloc(caches[j]);
      }
      for (size_t j = 0; j < num_caches; ++j) {
        slab_free(caches[j], objects[j]);
      }
      ++num_ready;
      while (!end) {
        usleep(1000);
      }
    });
  }
  while (num_ready != num_threads) {
    usleep(1000);
  }
  const size_t before = ResidentBytes();
  for (slab_cache_t *&cache : caches) {
    cache = MakeCache();
  }
  const size_t created = ResidentBytes();
  go = true;
  while (num_ready != 2 * num_threads) {
    usleep(1000);
  }
  const size_t used = ResidentBytes();
  end = true;
  for (std::thread &thread : threads) {
    thread.join();
  }
  std::printf(
      "%zu caches: %.2f MiB; used by %zu threads: %.2f MiB; threads gone: "
      "%.2f MiB\n",
      num_caches, static_cast<double>(created - before) / 1048576, num_threads,
      static_cast<double>(used - before) / 1048576,
      static_cast<double>(ResidentBytes() - before) / 1048576);
}

}  // namespace

void ReportMemory(bool is_quick) {
  const size_t count = is_quick ? 100000 : 10000000;
  std::printf("\nMemory\n");
  InChild([=] { ReportFootprint(64, count); });
  InChild([=] { ReportFootprint(16, count); });
  InChild([=] { ReportManyCaches(is_quick ? 10 : 1000, is_quick ? 4 : 64); });
}

}  // namespace compare
