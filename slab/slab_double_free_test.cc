// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A free by two threads at once (magazine.c), brought to each point at which it
// must be noticed: one of them is held up, its stores are made here.

#include <signal.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::AllocMany;
using slab_testing::Options;

class SlabDoubleFreeTest : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const slab_options_t options = Options();
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }
  void TearDown() override {
    EXPECT_STREQ(slab_check(cache_), nullptr);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
  }

  uint8_t *StateOf(const void *object) const {
    return slab_state_at(cache_, reinterpret_cast<uintptr_t>(object));
  }

  slab_cache_t *cache_ = nullptr;
};

constexpr char kMiscounted[] =
    ": double free \\(by two threads at once\\) in the slab at: 0x[0-9a-f]+, "
    "cache \"test\"";

// ---- each check alone, where no other one sees it ----

// A source in which another thread frees what the caller is just freeing. It
// is asked for memory when a magazine grows: after the look at the state,
// before the store.
struct InterruptingSource {
  slab_cache_t *cache = nullptr;
  void *object = nullptr;  // NULL: do not interrupt.

  static void *Alloc(void *context, size_t size_bytes, size_t align_bytes) {
    auto *source = static_cast<InterruptingSource *>(context);
    void *object = source->object;
    source->object = nullptr;
    if (object != nullptr) {
      std::thread([&] { slab_free(source->cache, object); }).join();
    }
    void *ptr = nullptr;
    return posix_memalign(&ptr, align_bytes, size_bytes) == 0 ? ptr : nullptr;
  }
  static void Free(void *, void *ptr, size_t) {
    std::free(ptr);
  }
};

TEST_F(SlabDoubleFreeTest, FreeThatFindsTheStateChangedMeanwhileDies) {
  InterruptingSource source;
  slab_options_t options = Options();
  options.source = {InterruptingSource::Alloc, InterruptingSource::Free,
                    &source};
  source.cache = slab_cache_create(&options);
  EXPECT_EXIT(
      {
        // This thread's magazine is small.
        std::vector<void *> objects;
        std::thread([&] { objects = AllocMany(source.cache, 100); }).join();
        slab_free(source.cache, slab_alloc(source.cache));
        for (void *object : objects) {
          source.object = object;
          slab_free(source.cache, object);
          if (source.object == nullptr) {
            _exit(0);  // It was freed twice.
          }
        }
        _exit(1);
      },
      testing::KilledBySignal(SIGABRT), "^slab: slab_free: double free: 0x");
  EXPECT_EQ(slab_cache_destroy(source.cache, 0), 0);
}

// Two threads free one object. The share of the one is in the depot when the
// other one stores.
TEST_F(SlabDoubleFreeTest, ObjectOfTheDepotWhoseStateChangedDies) {
  for (const int state : {int{SLAB_STATE_LIVE}, SLAB_STATE_CACHED + 100}) {
    EXPECT_EXIT(
        {
          std::vector<void *> objects = AllocMany(cache_, 3000);
          std::thread([&] {
            slab_free_bulk(cache_, objects.size(), objects.data());
          }).join();
          const slab_depot_t &depot = cache_->depot;
          if (depot.count == 0) {
            _exit(1);
          }
          void *next = depot.objects[depot.count - 1];
          slab_state_store(StateOf(next), static_cast<uint8_t>(state));
          std::thread([&] {
            _exit(slab_alloc(cache_) == next ? 0 : 2);
          }).join();
        },
        testing::KilledBySignal(SIGABRT),
        "^slab: slab_free: double free \\(by two threads at once\\): 0x");
  }
}

// The share of the one is in the slab, which is full, when the other one
// stores; then that one's share comes there as well.
TEST_F(SlabDoubleFreeTest, SlabWithMoreThanAllOfItsObjectsDies) {
  EXPECT_EXIT(
      {
        void *object = slab_alloc(cache_);
        std::thread([&] { slab_free(cache_, object); }).join();
        const slab_t *slab = cache_->lists[SLAB_LIST_EMPTY].first;
        if (slab == nullptr || slab->num_free != slab->count) {
          _exit(1);
        }
        slab_magazine_t *magazine = slab_magazine_of(&cache_->fast);
        slab_state_store(StateOf(object), magazine->traits.free_state);
        *magazine->top++ = object;
        slab_reap(cache_);
        _exit(0);
      },
      testing::KilledBySignal(SIGABRT),
      std::string("^slab: slab_free") + kMiscounted);
}

// Then the states of one's objects would be right in the other one.
TEST_F(SlabDoubleFreeTest, CheckSeesTwoMagazinesWithOneTag) {
  slab_free(cache_, slab_alloc(cache_));
  const uint8_t mine = slab_magazine_of(&cache_->fast)->traits.free_state;
  std::thread([&] {
    void *object = slab_alloc(cache_);
    slab_free(cache_, object);
    slab_magazine_t *magazine = slab_magazine_of(&cache_->fast);
    const uint8_t own = magazine->traits.free_state;
    EXPECT_NE(own, mine);
    EXPECT_STREQ(slab_check(cache_), nullptr);
    magazine->traits.free_state = mine;
    slab_state_store(StateOf(object), mine);
    EXPECT_STREQ(slab_check(cache_), "magazine: two with one tag");
    magazine->traits.free_state = own;
    slab_state_store(StateOf(object), own);
  }).join();
}

// Its constructor is not through, so nobody was given it.
TEST_F(SlabDoubleFreeTest, FreeOfAnObjectUnderConstructionIsNoDoubleFree) {
  static slab_cache_t *cache;
  for (const unsigned flags :
       {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
    slab_options_t options = Options();
    options.flags = flags;
    options.construct = [](void *object, void *) {
      slab_free(cache, object);
    };
    cache = slab_cache_create(&options);
    EXPECT_EXIT(_exit(slab_alloc(cache) == nullptr ? 1 : 0),
                testing::KilledBySignal(SIGABRT),
                "^slab: slab_free: invalid pointer \\(an object never "
                "allocated\\): 0x");
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  }
}

// ---- one that is held up for long ----

// Two threads free one object at once, and one of them is held up between its
// look at the state and its store, until the other's share of it is back in
// the slab. The object counts twice then.
class SlabHeldUpFreeTest : public SlabDoubleFreeTest {
 protected:
  void FreeHeldUp(void *object) {
    uint8_t *state = StateOf(object);
    if (state == nullptr || slab_state_load(state) != SLAB_STATE_LIVE) {
      _exit(1);
    }
    // What a thread has cached goes to the slab when it exits.
    std::thread([&] { slab_free(cache_, object); }).join();
    slab_magazine_t *magazine = slab_magazine_of(&cache_->fast);
    slab_state_store(state, magazine->traits.free_state);
    *magazine->top++ = object;
  }
};

TEST_F(SlabHeldUpFreeTest, SlabWithALiveObjectIsNotGivenBack) {
  EXPECT_EXIT(
      {
        auto *kept = static_cast<volatile char *>(slab_alloc(cache_));
        FreeHeldUp(slab_alloc(cache_));
        slab_reap(cache_);
        *kept = 1;
        _exit(0);
      },
      testing::KilledBySignal(SIGABRT),
      std::string("^slab: slab_reap") + kMiscounted);
}

TEST_F(SlabHeldUpFreeTest, SlabWithAnObjectInAMagazineIsNotGivenBack) {
  EXPECT_EXIT(
      {
        FreeHeldUp(slab_alloc(cache_));
        // It was the only one: another thread finds the slab empty.
        std::thread([&] { slab_reap(cache_); }).join();
        _exit(0);
      },
      testing::KilledBySignal(SIGABRT),
      std::string("^slab: slab_reap") + kMiscounted);
}

// The other's share went back with its slab, and the slab came back, before the
// one that was held up looks at its own.
TEST_F(SlabHeldUpFreeTest, SlotThatOutlivesItsSlabIsReported) {
  for (const bool comes_back : {false, true}) {
    for (const bool is_flushed : {false, true}) {
      EXPECT_EXIT(
          {
            void *object = slab_alloc(cache_);
            slab_magazine_t *magazine = slab_magazine_of(&cache_->fast);
            // The free of this thread got so far: loaded, stored, pushed, and
            // the other one stored last.
            std::thread([&] {
              slab_free(cache_, object);
              slab_reap(cache_);
            }).join();
            slab_reap(cache_);
            if (*StateOf(object) != SLAB_STATE_UNUSED) {
              _exit(1);
            }
            if (comes_back) {
              std::thread([&] {
                if (slab_alloc(cache_) != object) {
                  _exit(2);
                }
              }).join();
            }
            void *other = slab_alloc(cache_);
            *magazine->top++ = object;
            if (is_flushed) {
              slab_reap(cache_);
            }
            _exit(slab_alloc(cache_) == other ? 3 : 0);
          },
          testing::KilledBySignal(SIGABRT),
          "^slab: slab_free: double free \\(by two threads at once\\)");
    }
  }
}

// The slab went back before the one that was held up stored: when the slab
// comes back, its object is not what it should be.
TEST_F(SlabHeldUpFreeTest, StoreThatOutlivesItsSlabIsReported) {
  for (const bool is_used : {false, true}) {
    EXPECT_EXIT(
        {
          void *object = slab_alloc(cache_);
          std::thread([&] {
            slab_free(cache_, object);
            slab_reap(cache_);
          }).join();
          slab_reap(cache_);
          uint8_t *state = StateOf(object);
          void *other = slab_alloc(cache_);
          if (*state == SLAB_STATE_UNUSED || other != object) {
            _exit(1);
          }
          slab_free(cache_, other);
          slab_reap(cache_);
          // As slab_free_any ends, of a thread with a tag.
          *state = is_used ? SLAB_STATE_LIVE : SLAB_STATE_CACHED + 1;
          std::thread([&] { _exit(slab_alloc(cache_) == nullptr); }).join();
        },
        testing::KilledBySignal(SIGABRT),
        "^slab: slab_alloc: double free \\(by two threads at once\\)");
  }
}

TEST_F(SlabHeldUpFreeTest, IsReportedByDestroy) {
  EXPECT_EXIT(
      {
        FreeHeldUp(slab_alloc(cache_));
        // Not empty by its count when it looks.
        void *kept = slab_alloc(cache_);
        slab_cache_destroy(cache_, SLAB_DESTROY_LIVE | SLAB_DESTROY_QUIET);
        _exit(kept == nullptr);
      },
      testing::KilledBySignal(SIGABRT),
      std::string("^slab: slab_cache_destroy") + kMiscounted);
}

}  // namespace
