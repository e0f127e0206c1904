// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The policy by itself: pages that are used and freed by hand, and a kernel
// that only counts what it gets back.

#include "heap/purge.h"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "heap/central.h"
#include "heap/heap_testing.h"
#include "heap/kernel.h"
#include "heap/page_table.h"

namespace {

using heap_testing::RunInChild;

constexpr size_t kPages = 4096;
constexpr uintptr_t kBase = uintptr_t{1} << 32;

size_t discarded_pages;
bool refuse_discard;

bool CountDiscard(void *, size_t size_bytes) {
  if (refuse_discard) {
    return false;
  }
  discarded_pages += size_bytes / HEAP_PAGE_BYTES;
  return true;
}

// A heap whose pages are used from the low end up.
class Pages {
 public:
  Pages() {
    kernel_.discard = CountDiscard;
    heap_kernel = &kernel_;
    pages_.flags = flags_.data();
    pages_.capacity_bytes = flags_.size();
  }

  // Makes the first `count` pages the used ones. Returns how many of those that
  // became free went back.
  size_t SetUsed(size_t count) {
    heap_central_lock();
    const size_t before = discarded_pages;
    if (count > used_) {
      heap_purge_note_use(&pages_, used_, count);
      used_ = count;
    }
    while (used_ > count) {
      --used_;
      heap_purge_note_idle(&pages_, used_, used_ + 1);
      if (heap_purge_is_due(used_)) {
        const size_t keep = heap_purge_begin(used_);
        ++purges_;
        heap_purge_pages(&pages_, kBase, kPages, keep);
      }
    }
    heap_central_unlock();
    return discarded_pages - before;
  }

  size_t purges() const {
    return purges_;
  }
  heap_page_flags_t *pages() {
    return &pages_;
  }

 private:
  heap_kernel_t kernel_ = heap_kernel_default;
  std::vector<uint8_t> flags_ = std::vector<uint8_t>(kPages);
  heap_page_flags_t pages_ = {};
  size_t used_ = 0;
  size_t purges_ = 0;
};

TEST(PurgeTest, LittleMayStayIdle) {
  RunInChild([] {
    Pages pages;
    pages.SetUsed(3200);
    EXPECT_EQ(pages.SetUsed(3110), 0u);
    EXPECT_EQ(heap_purge_idle_pages(), 90u);
    // The next one is more than 1/32 of what is used; half of that stays.
    EXPECT_GT(pages.SetUsed(3100), 0u);
    EXPECT_LE(heap_purge_idle_pages(), 3110u / 64 + 10);
    // And of a heap that shrinks to nothing, eight pages at most.
    pages.SetUsed(0);
    EXPECT_LE(heap_purge_idle_pages(), 8u);
    EXPECT_GE(discarded_pages, 3192u);
  });
}

TEST(PurgeTest, HeapThatSwingsKeepsItsMemory) {
  RunInChild([] {
    Pages pages;
    for (int i = 0; i < 5; ++i) {
      pages.SetUsed(2000);
      pages.SetUsed(1000);
    }
    const size_t learnt = discarded_pages;
    for (int i = 0; i < 100; ++i) {
      pages.SetUsed(2000);
      pages.SetUsed(1000);
    }
    EXPECT_EQ(discarded_pages, learnt);
    EXPECT_EQ(heap_purge_idle_pages(), 1000u);
  });
}

// A lower low than any before must not cost all that was kept.
TEST(PurgeTest, HeapThatSwingsGivesBackInSmallSteps) {
  RunInChild([] {
    Pages pages;
    for (int i = 0; i < 10; ++i) {
      pages.SetUsed(4000);
      pages.SetUsed(1000);
    }
    // Four times what is used and 64 pages may stay: one purge is due.
    const size_t purges = pages.purges();
    pages.SetUsed(4000);
    const size_t discarded = pages.SetUsed(785);
    EXPECT_EQ(pages.purges(), purges + 1);
    EXPECT_GT(discarded, 0u);
    EXPECT_LE(discarded, 4000u / 10);
  });
}

// Deep swings as well, as far as so much may stay at all.
TEST(PurgeTest, HeapThatSwingsDeepKeepsWhatItMay) {
  RunInChild([] {
    Pages pages;
    for (int i = 0; i < 10; ++i) {
      pages.SetUsed(1000);
      pages.SetUsed(16);
    }
    const size_t discarded = discarded_pages;
    for (int i = 0; i < 10; ++i) {
      pages.SetUsed(1000);
      pages.SetUsed(16);
      // Four times what is used and 64 pages, less what a step takes.
      EXPECT_GE(heap_purge_idle_pages(), (4 * 16u + 64) * 3 / 4);
    }
    EXPECT_LE(discarded_pages - discarded, 10 * (1000u - 16 - 96));
  });
}

TEST(PurgeTest, HeapThatShrinksForGoodKeepsLittleAgain) {
  RunInChild([] {
    Pages pages;
    for (int i = 0; i < 10; ++i) {
      pages.SetUsed(4000);
      pages.SetUsed(1000);
    }
    for (size_t used = 1000; used > 0; used -= 10) {
      pages.SetUsed(used);
    }
    pages.SetUsed(0);
    // The 4 MiB that any heap which swings may keep.
    EXPECT_LE(heap_purge_idle_pages(), 64u);
  });
}

TEST(PurgeTest, KnowsWhatIsClean) {
  RunInChild([] {
    Pages pages;
    heap_central_lock();
    EXPECT_TRUE(heap_purge_note_use(pages.pages(), 0, 10));
    heap_purge_note_idle(pages.pages(), 0, 10);
    EXPECT_TRUE(heap_purge_has_idle(pages.pages()));
    EXPECT_FALSE(heap_purge_note_use(pages.pages(), 9, 11));
    heap_purge_note_idle(pages.pages(), 9, 11);
    EXPECT_EQ(heap_purge_pages(pages.pages(), kBase, kPages, 0), 11u);
    EXPECT_FALSE(heap_purge_has_idle(pages.pages()));
    EXPECT_TRUE(heap_purge_note_use(pages.pages(), 0, 11));

    // What the kernel does not take is neither clean nor asked for again.
    heap_purge_note_idle(pages.pages(), 0, 11);
    refuse_discard = true;
    EXPECT_EQ(heap_purge_pages(pages.pages(), kBase, kPages, 0), 0u);
    EXPECT_EQ(heap_purge_idle_pages(), 0u);
    refuse_discard = false;
    EXPECT_EQ(heap_purge_pages(pages.pages(), kBase, kPages, 0), 0u);
    EXPECT_FALSE(heap_purge_note_use(pages.pages(), 0, 1));

    // Nor is memory that is to be kept ever idle.
    pages.pages()->is_kept = true;
    EXPECT_TRUE(heap_purge_note_use(pages.pages(), 100, 200));
    heap_purge_note_idle(pages.pages(), 100, 200);
    EXPECT_EQ(heap_purge_idle_pages(), 0u);
    EXPECT_FALSE(heap_purge_note_use(pages.pages(), 100, 101));
    heap_central_unlock();
  });
}

}  // namespace
