// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// slab.hpp: typed caches, the pmr resource, the allocator.

#include <dlfcn.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <list>
#include <map>
#include <memory_resource>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.hpp"

namespace {

struct alignas(64) Node {
  static int num_live;
  int value;
  std::string text;

  Node(int v, std::string t) : value(v), text(std::move(t)) {
    if (v < 0) {
      throw std::invalid_argument("negative");
    }
    ++num_live;
  }
  ~Node() {
    --num_live;
  }
};
int Node::num_live = 0;

slab_stats_t Stats(slab_cache_t *cache) {
  slab_stats_t stats;
  slab_stats(cache, &stats);
  return stats;
}

TEST(SlabCppTest, NewConstructsAndDeleteDestroys) {
  slab::Cache<Node> cache("node");
  Node *node = cache.New(7, "seven");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(node) % 64, 0u);
  EXPECT_EQ(node->text, "seven");
  EXPECT_EQ(Node::num_live, 1);
  cache.Delete(node);
  cache.Delete(nullptr);
  EXPECT_EQ(Node::num_live, 0);
  EXPECT_EQ(Stats(cache.get()).num_live, 0u);
}

TEST(SlabCppTest, MakeOwns) {
  slab::Cache<Node> cache;
  {
    auto node = cache.Make(1, "one");
    EXPECT_EQ(node->value, 1);
  }
  EXPECT_EQ(Node::num_live, 0);
  EXPECT_EQ(Stats(cache.get()).num_live, 0u);
}

TEST(SlabCppTest, ConstructorThatThrowsLeavesNothing) {
  slab::Cache<Node> cache;
  EXPECT_THROW(cache.New(-1, ""), std::invalid_argument);
  EXPECT_EQ(Stats(cache.get()).num_live, 0u);
}

TEST(SlabCppTest, NewThrowsWhenTheLimitIsReached) {
  slab_options_t options = {};
  options.max_objects = 2;
  slab::Cache<int> cache(options);
  int *first = cache.New(1);
  int *second = cache.New(2);
  EXPECT_THROW(cache.New(3), std::bad_alloc);
  cache.Delete(first);
  cache.Delete(second);
}

TEST(SlabCppTest, BadOptionsThrow) {
  slab_options_t options = {};
  options.flags = 1u << 30;
  EXPECT_THROW(slab::Cache<int>{options}, std::bad_alloc);
}

TEST(SlabCppTest, ResourceServesNodesFromTheCache) {
  slab::Resource resource(64);
  {
    std::pmr::list<int> list(&resource);
    std::pmr::map<int, int> map(&resource);
    for (int i = 0; i < 1000; ++i) {
      list.push_back(i);
      map[i] = i;
    }
    EXPECT_EQ(Stats(resource.get()).num_live, 2000u);
    EXPECT_EQ(list.back(), 999);
    EXPECT_EQ(map.at(500), 500);
  }
  EXPECT_EQ(Stats(resource.get()).num_live, 0u);
}

TEST(SlabCppTest, ResourceSendsTheRestUpstream) {
  struct Counting : std::pmr::memory_resource {
    int num_live = 0;
    void *do_allocate(size_t bytes, size_t align) override {
      ++num_live;
      return std::pmr::new_delete_resource()->allocate(bytes, align);
    }
    void do_deallocate(void *ptr, size_t bytes, size_t align) override {
      --num_live;
      std::pmr::new_delete_resource()->deallocate(ptr, bytes, align);
    }
    bool do_is_equal(
        const std::pmr::memory_resource &other) const noexcept override {
      return this == &other;
    }
  } upstream;
  slab::Resource resource(32, &upstream);
  void *large = resource.allocate(33, 8);
  void *aligned = resource.allocate(32, 64);
  EXPECT_EQ(upstream.num_live, 2);
  resource.deallocate(aligned, 32, 64);
  resource.deallocate(large, 33, 8);
  EXPECT_EQ(upstream.num_live, 0);
  EXPECT_EQ(Stats(resource.get()).num_allocs, 0u);
  EXPECT_FALSE(resource.is_equal(upstream));
}

TEST(SlabCppTest, AllocatorServesContainers) {
  std::map<int, std::string, std::less<int>,
           slab::Allocator<std::pair<const int, std::string>>>
      map;
  std::unordered_map<int, int, std::hash<int>, std::equal_to<int>,
                     slab::Allocator<std::pair<const int, int>>>
      hash;
  std::vector<int, slab::Allocator<int>> vector;
  for (int i = 0; i < 3000; ++i) {
    map[i] = std::to_string(i);
    hash[i] = i;
    vector.push_back(i);
  }
  for (int i = 0; i < 3000; i += 2) {
    map.erase(i);
    hash.erase(i);
  }
  EXPECT_EQ(map.size(), 1500u);
  EXPECT_EQ(map.at(1501), "1501");
  EXPECT_EQ(hash.at(2999), 2999);
  EXPECT_EQ(vector[2998], 2998);
  EXPECT_TRUE(slab::Allocator<int>() == slab::Allocator<int>());
}

// Each was compiled with a SharedCache of its own.
TEST(SlabCppTest, ContainersMayCrossSharedObjects) {
  void *plugin = dlopen("slab/libslab_cpp_plugin.so", RTLD_NOW);
  ASSERT_NE(plugin, nullptr) << dlerror();
  std::list<int, slab::Allocator<int>> list;
  const auto fill = reinterpret_cast<void (*)(decltype(list) *)>(
      dlsym(plugin, "slab_test_fill"));
  ASSERT_NE(fill, nullptr) << dlerror();
  fill(&list);
  list.push_back(100);
  EXPECT_EQ(list.size(), 101u);
  EXPECT_EQ(list.back(), 100);
  list.clear();
  dlclose(plugin);
}

TEST(SlabCppTest, SharedCacheIsOneForEachSizeAndAlignment) {
  slab_cache_t *cache = slab_shared_cache(48, 16);
  EXPECT_EQ(slab_shared_cache(48, 16), cache);
  EXPECT_NE(slab_shared_cache(48, 32), cache);
  EXPECT_NE(slab_shared_cache(64, 16), cache);
  errno = 0;
  EXPECT_EQ(slab_shared_cache(0, 0), nullptr);
  EXPECT_EQ(errno, EINVAL);
}

struct alignas(128) Odd {
  char bytes[384];
};

// Ends the process, with success if there was no memory, and then was.
[[noreturn]] void AllocWithoutMemoryAndWith() {
  rlimit limit;
  getrlimit(RLIMIT_AS, &limit);
  rlimit none = limit;
  none.rlim_cur = 1 << 20;
  setrlimit(RLIMIT_AS, &none);
  slab::Allocator<Odd> allocator;
  bool has_failed = false;
  // Until what is mapped already is used up.
  for (int i = 0; i < 100000 && !has_failed; ++i) {
    try {
      static_cast<void>(allocator.allocate(1));
    } catch (const std::bad_alloc &) {
      has_failed = true;
    }
  }
  setrlimit(RLIMIT_AS, &limit);
  allocator.deallocate(allocator.allocate(1), 1);
  _exit(has_failed ? 0 : 1);
}

TEST(SlabCppTest, AllocatorTriesAgainWhenThereWasNoMemoryForACache) {
  EXPECT_EXIT(AllocWithoutMemoryAndWith(), testing::ExitedWithCode(0), "");
}

TEST(SlabCppTest, AllocatorsOfDifferentTypesAreEqual) {
  EXPECT_TRUE(slab::Allocator<int>() == slab::Allocator<long>());
  EXPECT_FALSE(slab::Allocator<int>() != slab::Allocator<long>());
}

TEST(SlabCppTest, ConstantObjectsCanBeDeleted) {
  slab::Cache<const int> cache;
  const int *object = cache.New(5);
  EXPECT_EQ(*object, 5);
  cache.Delete(object);
  EXPECT_EQ(Stats(cache.get()).num_live, 0u);
}

TEST(SlabCppTest, AllocatorRefusesSizesThatOverflow) {
  slab::Allocator<uint64_t> allocator;
  EXPECT_THROW(static_cast<void>(allocator.allocate(SIZE_MAX / 4)),
               std::bad_array_new_length);
}

}  // namespace
