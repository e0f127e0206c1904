// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Random damage of all that the heap keeps in a region (heads, notes, words,
// roots, and the slots and records that it relies on), then every call, in a
// child with an alarm: no signal, no hang, no pointer out of the region. And
// damage of each kind, one at a time, which `verify` has to name.
//
// 1,000 rounds, or SHMIPC_CORRUPTIONS of them. SHMIPC_TEST_SEED for other
// random numbers.

#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/block_internal.h"
#include "shmipc/root.h"
#include "shmipc/shared_heap.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::Count;
using shmipc_testing::NameOf;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr size_t kPage = SHMIPC_PAGE_BYTES;

class BlockCorruptionTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  static void Small(shmipc_region_options_t *options) {
    options->max_processes = 4;
    options->max_threads = 8;
    options->heap_bytes = 8 * kPage;
    if (options->backend != SHMIPC_SYSV) {
      options->heap_capacity_bytes = 12 * kPage;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(All, BlockCorruptionTest,
                         testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

constexpr size_t kSizes[] = {16, 100, 1000, 5000, 30000, 70000};

// A block must be in the pages; it is written, so it must be mapped.
bool Use(shmipc_region_t *region, void *block, size_t size_bytes) {
  if (block == nullptr) {
    return true;
  }
  auto *start = static_cast<unsigned char *>(block);
  if (start < region->base + region->pages_offset ||
      start + size_bytes > region->base + region->mapped_bytes) {
    return false;
  }
  memset(block, 0x5a, size_bytes);
  return true;
}

// Every call there is; false: a pointer led out of the region.
bool CallEverything(shmipc_region_t *region, std::vector<void *> blocks) {
  bool is_inside = true;
  for (void *block : blocks) {
    is_inside &= Use(region, block, shmipc_block_usable_size(region, block));
    shmipc_block_give(region, block);
    (void)!shmipc_block_take(region, block);
    shmipc_block_free(region, block);
  }
  blocks.clear();
  for (int i = 0; i < 60; i++) {
    size_t size = kSizes[i % 6];
    void *block = shmipc_block_alloc(region, size);
    is_inside &= Use(region, block, size);
    blocks.push_back(block);
  }
  void *large = shmipc_block_realloc(region, blocks[5], 200000);
  is_inside &= Use(region, large, 200000);
  (void)!shmipc_block_realloc(region, blocks[3], 6000);
  void *aligned = shmipc_block_alloc_aligned(region, 4096, 10);
  is_inside &= Use(region, aligned, 10);
  for (void *block : blocks) {
    shmipc_block_free(region, block);
  }
  for (const char *name : {"a", "b", "c"}) {
    shmipc_ref_t ref;
    (void)!shmipc_root_create(region, name, 100, nullptr, nullptr, &ref);
    if (shmipc_root_find(region, name, &ref) == 0) {
      is_inside &= Use(region, shmipc_block_get(region, ref, 100), 100);
    }
    if (shmipc_root_remove(region, name, &ref) == 0) {
      shmipc_block_free(region, shmipc_block_get(region, ref, 1));
    }
  }
  shmipc_root_list(
      region,
      [](void *, const char *name, shmipc_ref_t) { (void)strlen(name); },
      nullptr);
  struct Walk {
    shmipc_region_t *region;
    bool is_inside;
  } walk = {region, is_inside};
  shmipc_heap_walk(
      region,
      [](void *context, const shmipc_block_info_t *block) {
        auto *one = static_cast<Walk *>(context);
        auto end = block->ref.offset + block->usable_bytes;
        one->is_inside &= end <= one->region->mapped_bytes;
        return 0;
      },
      &walk);
  shmipc_heap_stats_t stats;
  (void)!shmipc_heap_stats_get(region, &stats);
  shmipc_heap_reclaim(region, SHMIPC_RECLAIM_IN_FLIGHT);
  shmipc_heap_trim(region);
  return walk.is_inside;
}

void Damage(shmipc_region_t *region, std::mt19937_64 *random, uint64_t count) {
  unsigned char *base = region->base;
  size_t tables_end = region->pages_offset;
  for (uint64_t i = 0; i < count; i++) {
    size_t where;
    switch ((*random)() % 6) {
      case 0:  // Anywhere in the heap's tables.
        where = region->heap_offset +
                (*random)() % (tables_end - region->heap_offset);
        break;
      case 1:  // Heads, of which one decides most.
        where = static_cast<size_t>(reinterpret_cast<unsigned char *>(
                                        shmipc_head_of(region, 0)) -
                                    base) +
                (*random)() % (8 * region->heap_pages);
        break;
      case 2:  // Words of pages, and notes.
        where = static_cast<size_t>(reinterpret_cast<unsigned char *>(
                                        shmipc_note_of(region, 0)) -
                                    base) +
                (*random)() % (tables_end - region->heap_offset - 22000);
        break;
      case 3:  // Words at the end of pages.
        where =
            tables_end + kPage * ((*random)() % 8 + 1) - 1 - (*random)() % 300;
        break;
      case 4:  // Roots.
        where =
            region->heap_offset + SHMIPC_HEAP_HEAD_BYTES + (*random)() % 512;
        break;
      default:  // Slots and records.
        where = SHMIPC_HEADER_BYTES + (*random)() % 1024;
    }
    // A whole value, now and then, that means something.
    if ((*random)() % 4 == 0 && where + 16 < region->mapped_bytes) {
      const uint64_t values[] = {0,
                                 SHMIPC_PAGE_LARGE,
                                 SHMIPC_PAGE_MORE,
                                 SHMIPC_PAGE_PREPARING | 0x100,
                                 SHMIPC_PAGE_FREEING | 0x200,
                                 1 + (*random)() % 40,
                                 0x7ff,
                                 ~uint64_t{0}};
      memcpy(base + where / 8 * 8, &values[(*random)() % 8], 8);
    } else {
      base[where] ^= static_cast<unsigned char>(1 + (*random)() % 255);
    }
  }
}

TEST_P(BlockCorruptionTest, NoCallDiesHangsOrLeavesTheRegion) {
  uint64_t num_rounds = Count("SHMIPC_CORRUPTIONS", 334);
  Watchdog watchdog(static_cast<unsigned int>(120 + num_rounds / 20));
  const uint64_t seed = Seed();
  for (uint64_t round = 0; round < num_rounds; round++) {
    TestRegion own(GetParam(), 4096, Small);
    // Blocks and roots of one that is alive, and of one that is dead.
    for (size_t size : kSizes) {
      ASSERT_NE(shmipc_block_alloc(own.region(), size), nullptr);
    }
    shmipc_ref_t ref;
    ASSERT_EQ(
        shmipc_root_create(own.region(), "a", 100, nullptr, nullptr, &ref), 0);
    Process child([&] {
      std::mt19937_64 random(seed + round);
      alarm(10);
      shmipc_region_t *region = own.AttachInChild();
      std::vector<void *> blocks;
      for (size_t size : kSizes) {
        blocks.push_back(shmipc_block_alloc(region, size));
      }
      Damage(region, &random, 1 + round % 40);
      bool is_inside = CallEverything(region, blocks);
      if (random() % 64 == 0) {
        shmipc_region_verify(region, nullptr, nullptr);
      }
      int status;
      shmipc_region_t *second = own.Attach(&status);
      if (second != nullptr) {
        is_inside &= CallEverything(second, {});
        shmipc_region_close(second);
      }
      own.CloseOwn();
      return is_inside ? 0 : 2;
    });
    ASSERT_EQ(child.Wait(), 0) << "round " << round << " of seed " << seed;
    // The one that was there, too.
    ASSERT_TRUE(CallEverything(own.region(), {}));
  }
  printf("%s: %" PRIu64
         " corruptions, 0 signals, 0 hangs, 0 pointers out of the region\n",
         NameOf(GetParam()), num_rounds);
}

struct Mutation {
  const char *names;
  std::function<void(shmipc_region_t *region)> change;
};

TEST_P(BlockCorruptionTest, VerifyNamesEachKindOfDamage) {
  // Page 0 has blocks of 1 KiB, of which the first is live; pages 1 to 3 are a
  // run; page 4 has blocks of 9 KB; roots 0 and 1 are in page 0.
  auto head = [](auto *r, uint32_t page) -> uint64_t & {
    return *shmipc_head_of(r, page);
  };
  auto word = [](auto *r, uint32_t page, uint32_t i) -> uint32_t & {
    uint32_t kind = shmipc_kind_of(*shmipc_head_of(r, page));
    return shmipc_words_of(r, page, kind - 1)[i];
  };
  const std::vector<Mutation> mutations = {
      {"page: of no kind",
       [&](auto *r) {
         head(r, 0) = 41;
       }},
      {"page: of no kind",
       [&](auto *r) {
         head(r, 5) = 0x100;
       }},
      {"its run is yet to come",
       [&](auto *r) {
         head(r, 1) |= 0x100;
       }},
      {"with other bits",
       [&](auto *r) {
         head(r, 0) |= 0x1000000;
       }},
      {"its thread is no record",
       [&](auto *r) {
         head(r, 0) |= 0xff00;
       }},
      {"its thread is no record",
       [&](auto *r) {
         head(r, 6) = 0xf0;
       }},
      {"its thread is yet to come",
       [&](auto *r) {
         head(r, 0) += uint64_t{1} << 32;
       }},
      {"its thread is yet to come",
       [&](auto *r) {
         head(r, 7) = (uint64_t{9} << 32) | 0x1f3;
       }},
      {"continues what is no run",
       [&](auto *r) {
         head(r, 1) = 0;
       }},
      {"continues what is no run",
       [&](auto *r) {
         head(r, 5) = SHMIPC_PAGE_MORE;
       }},
      {"longer than its run",
       [&](auto *r) {
         head(r, 3) = 0;
       }},
      {"longer than its run",
       [](auto *r) {
         shmipc_note_of(r, 1)->num_pages = 0;
       }},
      {"large, but nobody's",
       [](auto *r) {
         *shmipc_table_words_of(r, 1) = 0;
       }},
      {"its owner is no slot",
       [](auto *r) {
         *shmipc_table_words_of(r, 1) = 5;
       }},
      {"its owner is no slot",
       [&](auto *r) {
         word(r, 0, 0) = 9;
       }},
      {"its owner is no slot",
       [&](auto *r) {
         word(r, 0, 62) = 9;
       }},
      {"its owner is no slot",
       [&](auto *r) {
         word(r, 4, 6) = 9;
       }},
      {"its owner is yet to come",
       [&](auto *r) {
         word(r, 0, 0) += 1 << 11;
       }},
      {"its owner is yet to come",
       [&](auto *r) {
         word(r, 4, 1) = 3;
       }},
      {"has no end",
       [](auto *r) {
         memset(shmipc_root_of(r, 0)->name, 'x', 112);
       }},
      {"no beginning",
       [](auto *r) {
         shmipc_root_of(r, 0)->name[0] = '\0';
       }},
      {"another one has its name",
       [](auto *r) {
         shmipc_root_of(r, 1)->name[0] = 'a';
       }},
      {"leads out of the region",
       [](auto *r) {
         shmipc_root_of(r, 0)->ref = uint64_t{1} << 40;
       }},
      {"leads to no live block",
       [](auto *r) {
         shmipc_root_of(r, 0)->ref += 8;
       }},
      {"leads to no live block",
       [](auto *r) {
         shmipc_root_of(r, 0)->ref = 64;
       }},
      {"no beginning",
       [](auto *r) {
         shmipc_root_of(r, 5)->state = 1;
       }},
  };
  for (size_t i = 0; i < mutations.size(); i++) {
    TestRegion own(GetParam(), 4096, Small);
    shmipc_region_t *region = own.region();
    ASSERT_NE(shmipc_block_alloc(region, 1024), nullptr);
    ASSERT_NE(shmipc_block_alloc(region, 3 * kPage), nullptr);
    ASSERT_NE(shmipc_block_alloc(region, 9000), nullptr);
    shmipc_ref_t ref;
    for (const char *name : {"a", "b"}) {
      ASSERT_EQ(shmipc_root_create(region, name, 1024, nullptr, nullptr, &ref),
                0);
    }
    ASSERT_EQ(Problems(region), "");
    std::string before(reinterpret_cast<char *>(region->base),
                       region->mapped_bytes);
    mutations[i].change(region);
    std::string damaged(reinterpret_cast<char *>(region->base), before.size());
    EXPECT_NE(damaged, before) << i << ": the mutation changes nothing";
    std::string problems = Problems(region);
    EXPECT_NE(problems.find(mutations[i].names), std::string::npos)
        << i << ": " << mutations[i].names << " not in:\n"
        << problems;
    EXPECT_EQ(damaged, std::string(reinterpret_cast<char *>(region->base),
                                   before.size()))
        << i << ": verify has changed something";
    memcpy(region->base, before.data(), before.size());
    EXPECT_EQ(Problems(region), "");
  }
  printf("%zu mutations, each named\n", mutations.size());
}

}  // namespace
