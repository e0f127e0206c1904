// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Reports name the caller, however it was compiled.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <string>

#include "gtest/gtest.h"
#include "slab/call_sites.h"
#include "slab/slab.h"

namespace {

// Returns what a child that runs `run` writes to stderr.
std::string TextOfChild(const std::function<void()> &run) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    run();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[512];
  for (ssize_t count; (count = read(ends[0], part, sizeof(part))) > 0;) {
    text.append(part, static_cast<size_t>(count));
  }
  close(ends[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) << text;
  return text;
}

void ExpectCallSite(const std::string &text, const std::string &name) {
  const size_t at = text.find(name + " 0x");
  ASSERT_NE(at, std::string::npos) << name << " in: " << text;
  const auto site = std::stoull(text.substr(at + name.size() + 1), nullptr, 16);
  EXPECT_GT(site, reinterpret_cast<uintptr_t>(__start_slab_call_sites)) << text;
  EXPECT_LT(site, reinterpret_cast<uintptr_t>(__stop_slab_call_sites)) << text;
}

void ExpectReportsNameTheCaller(const call_sites_t &sites, unsigned flags) {
  slab_options_t options = {};
  options.object_bytes = 48;
  options.flags = flags;
  slab_cache_t *cache = slab_cache_create(&options);
  for (auto *alloc : sites.allocs) {
    for (auto *free_it : sites.frees) {
      const std::string text = TextOfChild([&] {
        void *object = alloc(cache);
        void *other = slab_alloc(cache);
        free_it(cache, object);
        slab_free(cache, other);
        free_it(cache, object);
      });
      ExpectCallSite(text, "called from");
      if (flags == SLAB_DEBUG) {
        ExpectCallSite(text, "allocated from");
        ExpectCallSite(text, "last freed from");
      }
    }
  }
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

class SlabCallSiteTest : public testing::TestWithParam<unsigned> {};

INSTANTIATE_TEST_SUITE_P(Flags, SlabCallSiteTest,
                         testing::Values(0u, unsigned{SLAB_NO_MAGAZINES},
                                         unsigned{SLAB_DEBUG}));

TEST_P(SlabCallSiteTest, ReportNamesTheCallerOfEachFunction) {
  ExpectReportsNameTheCaller(call_sites, GetParam());
}

TEST_P(SlabCallSiteTest, ReportNamesTheCallerThatIsNotOptimized) {
  ExpectReportsNameTheCaller(call_sites_unoptimized, GetParam());
}

}  // namespace
