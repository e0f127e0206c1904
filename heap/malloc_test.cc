// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// libc's and C++'s allocation functions, to the letter of their manuals, in a
// program that is linked with this malloc. googletest runs on it as well.

#include <dlfcn.h>
#include <malloc.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <new>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/heap_testing.h"

// Not declared by <stdlib.h> any more.
extern "C" void cfree(void *ptr);
// Not declared by it yet.
extern "C" void free_sized(void *ptr, size_t size);
extern "C" void free_aligned_sized(void *ptr, size_t alignment, size_t size);

namespace {

using heap_testing::EdgeSizes;
using heap_testing::Fill;
using heap_testing::IsFilled;
using heap_testing::IsZero;

bool IsAligned(const void *ptr, size_t align_bytes) {
  return reinterpret_cast<uintptr_t>(ptr) % align_bytes == 0;
}

// Hides a value from the compiler, which knows what these functions do.
template <typename T>
T Hidden(T value) {
  const volatile T hidden = value;
  return hidden;
}

void Discard(void *) {
}

size_t NumLive() {
  heap_stats_t stats;
  heap_stats_get(&stats);
  return stats.num_live;
}

class MallocTest : public testing::Test {
 protected:
  void TearDown() override {
    EXPECT_STREQ(heap_check(), nullptr);
  }

  // Sizes that no object can have.
  const std::vector<size_t> impossible_ = {
      size_t{PTRDIFF_MAX} + 1, SIZE_MAX - 4095, SIZE_MAX - 1, SIZE_MAX};
};

TEST_F(MallocTest, IsServedByThisHeap) {
  for (size_t size : EdgeSizes()) {
    void *ptr = malloc(size);
    ASSERT_NE(ptr, nullptr);
    EXPECT_EQ(malloc_usable_size(ptr), heap_usable_size(ptr));
    EXPECT_GE(malloc_usable_size(ptr), size);
    EXPECT_TRUE(IsAligned(ptr, alignof(std::max_align_t)));
    heap_free(ptr);
    ptr = heap_alloc(size);
    free(ptr);
  }
}

TEST_F(MallocTest, MallocOfZeroIsABlockOfItsOwn) {
  void *a = malloc(Hidden<size_t>(0));
  void *b = malloc(Hidden<size_t>(0));
  EXPECT_NE(a, nullptr);
  EXPECT_NE(a, b);
  free(a);
  free(b);
}

TEST_F(MallocTest, MallocOfImpossibleSizeIsEnomem) {
  for (size_t size : impossible_) {
    errno = 0;
    EXPECT_EQ(malloc(size), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    errno = 0;
    EXPECT_EQ(valloc(size), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    errno = 0;
    EXPECT_EQ(pvalloc(size), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    errno = 0;
    EXPECT_EQ(memalign(64, size), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    errno = 0;
    EXPECT_EQ(aligned_alloc(64, size), nullptr);
    EXPECT_EQ(errno, ENOMEM);
  }
}

TEST_F(MallocTest, FreeKeepsErrnoAndIgnoresNull) {
  errno = EDOM;
  free(nullptr);
  for (size_t size : {10, 20000, 100000, 8 << 20}) {
    void *ptr = malloc(Hidden(size));
    errno = EDOM;
    free(ptr);
    EXPECT_EQ(errno, EDOM);
  }
}

TEST_F(MallocTest, CfreeFrees) {
  const size_t num_live = NumLive();
  void *ptr = malloc(Hidden<size_t>(100));
  EXPECT_EQ(NumLive(), num_live + 1);
  cfree(ptr);
  EXPECT_EQ(NumLive(), num_live);
}

TEST_F(MallocTest, CallocIsZeroAndOverflowIsEnomem) {
  for (int round = 0; round < 2; ++round) {
    for (size_t size : EdgeSizes()) {
      void *ptr = calloc(1, size);
      EXPECT_TRUE(IsZero(ptr, size));
      memset(ptr, 1, malloc_usable_size(ptr));
      free(ptr);
    }
  }
  errno = 0;
  EXPECT_EQ(calloc(Hidden(SIZE_MAX / 2), 3), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  errno = 0;
  EXPECT_EQ(calloc(Hidden(size_t{1} << 32), size_t{1} << 32), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  void *empty = calloc(Hidden<size_t>(0), Hidden(SIZE_MAX));
  EXPECT_NE(empty, nullptr);
  free(empty);
}

TEST_F(MallocTest, ReallocToZeroFrees) {
  const size_t num_live = NumLive();
  void *ptr = malloc(Hidden<size_t>(100));
  errno = EDOM;
  EXPECT_EQ(realloc(Hidden(ptr), Hidden<size_t>(0)), nullptr);
  EXPECT_EQ(errno, EDOM) << "it is no failure";
  EXPECT_EQ(NumLive(), num_live) << "it is free";
  ptr = realloc(nullptr, Hidden<size_t>(0));
  EXPECT_NE(ptr, nullptr);
  free(ptr);
}

TEST_F(MallocTest, ReallocKeepsContentsAndFailsWhole) {
  void *ptr = nullptr;
  size_t old_size = 0;
  for (size_t size : {1, 100, 5000, 40000, 1 << 20, 8 << 20, 3 << 20, 10}) {
    ptr = realloc(ptr, size);
    ASSERT_NE(ptr, nullptr);
    EXPECT_TRUE(IsFilled(ptr, size, old_size, old_size));
    Fill(ptr, size, size);
    old_size = size;
    for (size_t impossible : impossible_) {
      errno = 0;
      EXPECT_EQ(realloc(ptr, impossible), nullptr);
      EXPECT_EQ(errno, ENOMEM);
    }
    EXPECT_TRUE(IsFilled(ptr, size, size, size));
  }
  free(ptr);
}

TEST_F(MallocTest, ReallocarrayMultipliesAndChecks) {
  void *ptr = reallocarray(nullptr, 10, 100);
  ASSERT_NE(ptr, nullptr);
  EXPECT_GE(malloc_usable_size(ptr), 1000u);
  Fill(ptr, 1000, 1);
  errno = 0;
  EXPECT_EQ(reallocarray(Hidden(ptr), Hidden(SIZE_MAX / 2), 3), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_TRUE(IsFilled(ptr, 1000, 1000, 1));
  ptr = reallocarray(ptr, 100, 100);
  EXPECT_TRUE(IsFilled(ptr, 10000, 1000, 1));
  EXPECT_EQ(reallocarray(ptr, Hidden<size_t>(0), 100), nullptr) << "freed";
}

TEST_F(MallocTest, PosixMemalignReturnsItsErrorsAndKeepsErrno) {
  void *untouched = &untouched;
  errno = EDOM;
  for (size_t align : {0, 1, 2, 4, 3, 7, 12, 24, 4097}) {
    EXPECT_EQ(posix_memalign(&untouched, Hidden(align), 100), EINVAL) << align;
  }
  EXPECT_EQ(posix_memalign(&untouched, Hidden<size_t>(64), SIZE_MAX), ENOMEM);
  EXPECT_EQ(posix_memalign(&untouched, Hidden(size_t{1} << 62), 1), ENOMEM);
  EXPECT_EQ(untouched, &untouched);
  for (size_t align = sizeof(void *); align <= 1 << 22; align *= 2) {
    for (size_t size : {0, 1, 100, 10000, 1000000}) {
      void *ptr;
      ASSERT_EQ(posix_memalign(&ptr, align, size), 0);
      EXPECT_TRUE(IsAligned(ptr, align));
      memset(ptr, 1, size);
      free(ptr);
    }
  }
  EXPECT_EQ(errno, EDOM);
}

TEST_F(MallocTest, AlignedAllocTakesPowersOfTwoOnly) {
  for (size_t align = 1; align <= 1 << 20; align *= 2) {
    void *ptr = aligned_alloc(Hidden(align), 1000);
    ASSERT_NE(ptr, nullptr);
    EXPECT_TRUE(IsAligned(ptr, align));
    free(ptr);
  }
  for (size_t align : {0, 3, 48}) {
    errno = 0;
    EXPECT_EQ(aligned_alloc(Hidden(align), 1000), nullptr);
    EXPECT_EQ(errno, EINVAL);
  }
}

TEST_F(MallocTest, MemalignRoundsItsAlignmentUp) {
  for (size_t align : {0, 1, 3, 17, 100, 4096, 5000}) {
    void *ptr = memalign(Hidden(align), 1000);
    ASSERT_NE(ptr, nullptr);
    size_t power = 1;
    while (power < align) {
      power *= 2;
    }
    EXPECT_TRUE(IsAligned(ptr, power)) << align;
    free(ptr);
  }
  errno = 0;
  EXPECT_EQ(memalign(Hidden(SIZE_MAX), 10), nullptr);
  EXPECT_EQ(errno, EINVAL);
}

TEST_F(MallocTest, VallocAndPvallocGivePages) {
  const auto page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t size : {size_t{0}, size_t{1}, page_bytes, page_bytes + 1}) {
    void *ptr = valloc(size);
    EXPECT_TRUE(IsAligned(ptr, page_bytes));
    free(ptr);
    ptr = pvalloc(size);
    EXPECT_TRUE(IsAligned(ptr, page_bytes));
    const size_t rounded = (size + page_bytes - 1) / page_bytes * page_bytes;
    EXPECT_GE(malloc_usable_size(ptr), rounded);
    free(ptr);
  }
}

TEST_F(MallocTest, UsableSizeOfNullIsZero) {
  EXPECT_EQ(malloc_usable_size(nullptr), 0u);
}

TEST_F(MallocTest, MemoryOfLibcFunctionsIsFreedHere) {
  char *copy = strdup("a string that libc allocated");
  EXPECT_GE(heap_usable_size(copy), strlen(copy) + 1);
  free(copy);
  char *text = nullptr;
  ASSERT_GT(asprintf(&text, "%0*d", 5000, 1), 0);
  EXPECT_GE(heap_usable_size(text), 5001u);
  free(text);
  size_t length = 0;
  FILE *stream = open_memstream(&text, &length);
  fputs("into memory", stream);
  fclose(stream);
  EXPECT_STREQ(text, "into memory");
  free(text);
}

// The library makes the size of an aligned new a multiple of the alignment, and
// its sized delete is told the one before.
TEST_F(MallocTest, AlignedSizedDeleteOfWhatAlignedNewMade) {
  for (size_t align = 32; align <= size_t{4} << 20; align *= 2) {
    const std::align_val_t value{align};
    for (const size_t size :
         {size_t{0}, size_t{1}, size_t{100}, align - 1, align, align + 1,
          size_t{3000}, size_t{100000}, size_t{40} << 20}) {
      ::operator delete(Hidden(::operator new(size, value)), size, value);
      ::operator delete[](Hidden(::operator new[](size, value)), size, value);
    }
  }
}

// The resource hands its own alignment on, 16 by default, and the size that it
// was asked for.
TEST_F(MallocTest, MemoryResourcesAllocateAndDeallocate) {
  std::pmr::memory_resource *plain = std::pmr::new_delete_resource();
  for (size_t align : {1, 4, 8, 16, 64}) {
    for (size_t size : {1, 5, 20, 100, 3000, 100001}) {
      plain->deallocate(plain->allocate(size, align), size, align);
    }
  }
  plain->deallocate(plain->allocate(20), 20);
  std::pmr::unsynchronized_pool_resource pool(plain);
  std::pmr::monotonic_buffer_resource monotonic(plain);
  std::pmr::vector<std::pmr::string> pooled(&pool);
  std::pmr::vector<std::pmr::string> kept(&monotonic);
  for (int i = 0; i < 1000; ++i) {
    pooled.emplace_back(i, 'x');
    kept.emplace_back(i, 'y');
  }
  EXPECT_EQ(pooled[999].size(), 999u);
  EXPECT_EQ(kept[999].size(), 999u);
}

TEST_F(MallocTest, InfoFunctionsTellOfThisHeap) {
  void *ptr = Hidden(malloc(40 << 20));
  EXPECT_GE(mallinfo2().hblkhd, size_t{40} << 20);
  EXPECT_EQ(mallinfo2().hblks, 1u);
  EXPECT_GE(mallinfo2().uordblks, 1u);
  void *aligned = Hidden(aligned_alloc(1 << 20, 40 << 20));
  EXPECT_EQ(mallinfo2().hblks, 2u);
  EXPECT_LT(mallinfo2().uordblks, size_t{1} << 40);
  EXPECT_EQ(mallinfo2().arena, mallinfo2().uordblks + mallinfo2().fordblks);
  free(aligned);
  char *text = nullptr;
  size_t length = 0;
  FILE *stream = open_memstream(&text, &length);
  EXPECT_EQ(malloc_info(0, stream), 0);
  errno = 0;
  EXPECT_EQ(malloc_info(1, stream), -1);
  EXPECT_EQ(errno, EINVAL);
  fclose(stream);
  EXPECT_EQ(strncmp(text, "<malloc version=", 16), 0) << text;
  EXPECT_NE(strstr(text, "</malloc>\n"), nullptr);
  free(text);
  free(ptr);
  EXPECT_EQ(mallopt(M_MMAP_THRESHOLD, 1000), 0);
  malloc_trim(0);
}

// C++.

struct alignas(256) Overaligned {
  char bytes[300];
};

TEST_F(MallocTest, OperatorsNewAndDeleteEndHere) {
  auto *number = new int(7);
  EXPECT_GE(heap_usable_size(number), sizeof(int));
  delete number;
  auto *array = new std::string[100];
  array[99] = std::string(1000, 'x');
  delete[] array;
  auto *aligned = new Overaligned;
  EXPECT_TRUE(IsAligned(aligned, 256));
  EXPECT_GE(heap_usable_size(aligned), sizeof(Overaligned));
  delete aligned;
  auto *aligned_array = new Overaligned[7];
  EXPECT_TRUE(IsAligned(aligned_array, 256));
  delete[] aligned_array;
  void *raw = ::operator new(100);
  ::operator delete (raw, size_t{100});
  raw = ::operator new(100, std::align_val_t(4096));
  EXPECT_TRUE(IsAligned(raw, 4096));
  ::operator delete (raw, size_t{100}, std::align_val_t(4096));
  raw = ::operator new(100, std::align_val_t(64), std::nothrow);
  ::operator delete(raw, std::align_val_t(64), std::nothrow);
  raw = ::operator new[](100, std::align_val_t(64));
  ::operator delete[](raw, size_t{100}, std::align_val_t(64));
  raw = ::operator new[](100, std::align_val_t(64));
  ::operator delete[](raw, std::align_val_t(64));
  raw = ::operator new[](100, std::nothrow);
  ::operator delete[](raw, std::nothrow);
  raw = ::operator new(100, std::nothrow);
  ::operator delete(raw, std::nothrow);
  raw = ::operator new[](0);
  EXPECT_NE(raw, nullptr);
  ::operator delete[](raw);
}

struct Base {
  uint64_t member = 1;
};

struct Derived : Base {
  std::vector<int> more;
  uint64_t members[10] = {};
};

TEST_F(MallocTest, DeleteOfAnotherSizeDies) {
  EXPECT_DEATH(::operator delete (Hidden(::operator new(100)), size_t{200}),
               "heap: sized free: size differs from that of the block");
  EXPECT_DEATH(::operator delete[](Hidden(::operator new[](100)), size_t{8}),
               "heap: sized free: size differs from that of the block");
  EXPECT_DEATH(
      ::operator delete (Hidden(::operator new(100, std::align_val_t(256))),
                         size_t{300}, std::align_val_t(256)),
      "heap: sized free: size differs from that of the block");
  // The error that this finds in programs: no virtual destructor.
  EXPECT_DEATH(delete Hidden<Base *>(new Derived), "size differs");
}

// A block that realloc made smaller may have stayed where it was.
TEST_F(MallocTest, FreeSizedTakesTheSizeThatWasAskedForLast) {
  for (size_t size : EdgeSizes()) {
    free_sized(malloc(size), size);
    free_sized(calloc(1, size), size);
    for (size_t smaller = size; smaller > 0; smaller /= 2) {
      free_sized(realloc(malloc(size), smaller), smaller);
    }
    free_sized(realloc(malloc(100), size + 100), size + 100);
    free_aligned_sized(aligned_alloc(256, size), 256, size);
  }
  free_sized(nullptr, 1);
  free_aligned_sized(nullptr, 64, 1);
  EXPECT_DEATH(free_sized(Hidden(malloc(100)), 200), "size differs");
  EXPECT_DEATH(free_sized(Hidden(malloc(1000)), 100), "size differs");
  EXPECT_DEATH(free_aligned_sized(Hidden(aligned_alloc(64, 100)), 64, 1000),
               "size differs");
}

TEST_F(MallocTest, NewOfImpossibleSizeThrows) {
  for (size_t size : impossible_) {
    EXPECT_THROW(Discard(::operator new(size)), std::bad_alloc);
    EXPECT_EQ(::operator new(size, std::nothrow), nullptr);
  }
  // libstdc++ rounds sizes up to the alignment, so not the greatest ones.
  const auto size = Hidden(size_t{PTRDIFF_MAX} + 1);
  EXPECT_THROW(Discard(::operator new(size, std::align_val_t(64))),
               std::bad_alloc);
  EXPECT_EQ(::operator new[](size, std::align_val_t(64), std::nothrow),
            nullptr);
}

TEST_F(MallocTest, NewHandlerIsCalled) {
  static int calls;
  calls = 0;
  std::set_new_handler([] {
    if (++calls == 3) {
      std::set_new_handler(nullptr);
    }
  });
  EXPECT_THROW(Discard(::operator new(Hidden<size_t>(PTRDIFF_MAX))),
               std::bad_alloc);
  EXPECT_EQ(calls, 3);
}

// Shared objects that come and go.

TEST_F(MallocTest, PluginsMayComeAndGo) {
  for (int i = 0; i < 20; ++i) {
    void *plugin = dlopen("heap/libmalloc_test_plugin.so", RTLD_NOW);
    ASSERT_NE(plugin, nullptr) << dlerror();
    auto *make = reinterpret_cast<void *(*)(size_t)>(
        dlsym(plugin, "malloc_test_plugin_make"));
    ASSERT_NE(make, nullptr);
    void *ptr = make(1000);
    EXPECT_GE(heap_usable_size(ptr), 1000u) << "one malloc for all";
    EXPECT_TRUE(IsZero(ptr, 1000));
    ASSERT_EQ(dlclose(plugin), 0);
    free(ptr);
  }
}

}  // namespace
