// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/run_map.h"

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap_testing.h"

namespace {

using heap_testing::Random;

constexpr uint32_t kMinUnits = 4;  // No shorter run is handed out.

// A run map with room for `capacity` units, and its tags.
class Map {
 public:
  explicit Map(uint32_t capacity)
      : tags_(static_cast<uint32_t *>(calloc(capacity, sizeof(uint32_t))),
              free) {
    map_.tags = tags_.get();
    map_.tag_capacity = capacity;
  }
  Map(const Map &other) : Map(other.map_.tag_capacity) {
    map_ = other.map_;
    map_.tags = tags_.get();
    memcpy(map_.tags, other.map_.tags, map_.unit_count * sizeof(uint32_t));
  }
  Map &operator=(const Map &) = delete;

  heap_run_map_t *get() {
    return &map_;
  }
  heap_run_map_t *operator->() {
    return &map_;
  }

 private:
  heap_run_map_t map_ = {};
  // Not a vector: what is not touched costs no memory.
  std::unique_ptr<uint32_t, void (*)(void *)> tags_;
};

uint32_t AllocBlock(heap_run_map_t *map, uint32_t units) {
  return heap_run_map_alloc(map, units, 0, 1, HEAP_RUN_BLOCK);
}

std::string Text(heap_run_t run) {
  return "kind " + std::to_string(run.kind) + " [" + std::to_string(run.start) +
         ", +" + std::to_string(run.units) + ")";
}

TEST(RunMapTest, NewMapIsSound) {
  Map map(16);
  EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
  EXPECT_EQ(heap_run_map_last_free(map.get()).units, 0u);
  EXPECT_EQ(AllocBlock(map.get(), 1), HEAP_RUN_NONE);
}

TEST(RunMapTest, AppendedUnitsAreOneFreeRun) {
  Map map(100);
  heap_run_map_append(map.get(), 30, HEAP_RUN_FREE);
  heap_run_map_append(map.get(), 70, HEAP_RUN_FREE);
  EXPECT_EQ(map->free_units, 100u);
  EXPECT_EQ(Text(heap_run_map_find(map.get(), 99)),
            Text({HEAP_RUN_FREE, 0, 100}));
  EXPECT_EQ(Text(heap_run_map_last_free(map.get())),
            Text({HEAP_RUN_FREE, 0, 100}));
  EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
}

TEST(RunMapTest, AppendedHoleIsNeverHandedOutNorJoined) {
  Map map(96);
  heap_run_map_append(map.get(), 32, HEAP_RUN_FREE);
  heap_run_map_append(map.get(), 32, HEAP_RUN_HOLE);
  heap_run_map_append(map.get(), 32, HEAP_RUN_FREE);
  EXPECT_EQ(AllocBlock(map.get(), 33), HEAP_RUN_NONE);
  EXPECT_EQ(AllocBlock(map.get(), 32), 0u);
  EXPECT_EQ(AllocBlock(map.get(), 32), 64u);
  EXPECT_EQ(AllocBlock(map.get(), 1), HEAP_RUN_NONE);
  EXPECT_EQ(Text(heap_run_map_free(map.get(), 0)),
            Text({HEAP_RUN_FREE, 0, 32}));
  EXPECT_EQ(Text(heap_run_map_free(map.get(), 64)),
            Text({HEAP_RUN_FREE, 64, 32}));
  EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
}

TEST(RunMapTest, ShortRequestsGetTheShortestRunThatCanBeInABin) {
  Map map(16);
  heap_run_map_append(map.get(), 16, HEAP_RUN_FREE);
  for (uint32_t units = 0; units < 4; ++units) {
    const uint32_t unit = AllocBlock(map.get(), units);
    EXPECT_EQ(unit, units * kMinUnits);
    EXPECT_EQ(heap_run_map_find(map.get(), unit).units, kMinUnits);
  }
  EXPECT_EQ(AllocBlock(map.get(), 1), HEAP_RUN_NONE);
}

TEST(RunMapTest, FreeJoinsWithBothNeighbours) {
  Map map(40);
  heap_run_map_append(map.get(), 40, HEAP_RUN_FREE);
  for (uint32_t i = 0; i < 4; ++i) {
    ASSERT_EQ(AllocBlock(map.get(), 10), i * 10);
  }
  EXPECT_EQ(Text(heap_run_map_free(map.get(), 0)),
            Text({HEAP_RUN_FREE, 0, 10}));
  EXPECT_EQ(Text(heap_run_map_free(map.get(), 20)),
            Text({HEAP_RUN_FREE, 20, 10}));
  EXPECT_EQ(Text(heap_run_map_free(map.get(), 10)),
            Text({HEAP_RUN_FREE, 0, 30}));
  EXPECT_EQ(Text(heap_run_map_free(map.get(), 30)),
            Text({HEAP_RUN_FREE, 0, 40}));
  EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
}

TEST(RunMapTest, RunsTooShortForABinComeBackByJoining) {
  for (uint32_t short_units = 1; short_units < kMinUnits; ++short_units) {
    Map map(24);
    heap_run_map_append(map.get(), 20 + short_units, HEAP_RUN_FREE);
    ASSERT_EQ(AllocBlock(map.get(), 10), 0u);
    ASSERT_EQ(AllocBlock(map.get(), 10), 10u);
    EXPECT_EQ(AllocBlock(map.get(), 1), HEAP_RUN_NONE);
    EXPECT_EQ(map->free_units, short_units);
    EXPECT_EQ(Text(heap_run_map_free(map.get(), 10)),
              Text({HEAP_RUN_FREE, 10, 10 + short_units}));
    EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
  }
}

TEST(RunMapTest, AlignedRunLeavesWhatIsBeforeAndBehindItFree) {
  Map map(256);
  heap_run_map_append(map.get(), 256, HEAP_RUN_FREE);
  ASSERT_EQ(AllocBlock(map.get(), 5), 0u);
  // The map's unit 0 has the number 48: 64 is unit 16.
  EXPECT_EQ(heap_run_map_alloc(map.get(), 9, 48, 64, HEAP_RUN_SPAN), 16u);
  EXPECT_EQ(Text(heap_run_map_find(map.get(), 16)),
            Text({HEAP_RUN_SPAN, 16, 9}));
  EXPECT_EQ(Text(heap_run_map_find(map.get(), 15)),
            Text({HEAP_RUN_FREE, 5, 11}));
  EXPECT_EQ(Text(heap_run_map_find(map.get(), 25)),
            Text({HEAP_RUN_FREE, 25, 231}));
  EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
}

TEST(RunMapTest, LowestOfTheRunsOfOneLengthIsTaken) {
  Map map(400);
  heap_run_map_append(map.get(), 400, HEAP_RUN_FREE);
  for (uint32_t i = 0; i < 40; ++i) {
    ASSERT_EQ(AllocBlock(map.get(), 10), i * 10);
  }
  for (uint32_t unit : {130, 30, 330, 230}) {
    heap_run_map_free(map.get(), unit);
  }
  for (uint32_t unit : {30, 130, 230, 330}) {
    EXPECT_EQ(AllocBlock(map.get(), 10), unit);
  }
}

TEST(RunMapTest, ShorterRunIsPreferredToALowerOne) {
  Map map(400);
  heap_run_map_append(map.get(), 400, HEAP_RUN_FREE);
  ASSERT_EQ(AllocBlock(map.get(), 100), 0u);
  ASSERT_EQ(AllocBlock(map.get(), 100), 100u);
  ASSERT_EQ(AllocBlock(map.get(), 20), 200u);
  ASSERT_EQ(AllocBlock(map.get(), 180), 220u);
  heap_run_map_free(map.get(), 0);
  heap_run_map_free(map.get(), 200);
  EXPECT_EQ(AllocBlock(map.get(), 20), 200u);
}

TEST(RunMapTest, ResizeShrinksAndTakesTheFreeUnitsBehind) {
  Map map(100);
  heap_run_map_append(map.get(), 100, HEAP_RUN_FREE);
  ASSERT_EQ(AllocBlock(map.get(), 50), 0u);
  ASSERT_EQ(AllocBlock(map.get(), 20), 50u);
  EXPECT_FALSE(heap_run_map_resize(map.get(), 0, 51));
  EXPECT_TRUE(heap_run_map_resize(map.get(), 0, 50));
  EXPECT_TRUE(heap_run_map_resize(map.get(), 50, 50));
  EXPECT_FALSE(heap_run_map_resize(map.get(), 50, 51));
  EXPECT_EQ(map->free_units, 0u);
  EXPECT_TRUE(heap_run_map_resize(map.get(), 0, 1));
  EXPECT_EQ(Text(heap_run_map_find(map.get(), 0)),
            Text({HEAP_RUN_BLOCK, 0, kMinUnits}));
  EXPECT_TRUE(heap_run_map_resize(map.get(), 0, 49));
  EXPECT_EQ(Text(heap_run_map_find(map.get(), 49)),
            Text({HEAP_RUN_FREE, 49, 1}));
  EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
}

TEST(RunMapTest, TruncateTakesFromTheLastFreeRunOnly) {
  Map map(100);
  heap_run_map_append(map.get(), 100, HEAP_RUN_FREE);
  ASSERT_EQ(AllocBlock(map.get(), 50), 0u);
  heap_run_map_truncate(map.get(), 20);
  EXPECT_EQ(map->unit_count, 80u);
  EXPECT_EQ(Text(heap_run_map_last_free(map.get())),
            Text({HEAP_RUN_FREE, 50, 30}));
  heap_run_map_truncate(map.get(), 30);
  EXPECT_EQ(map->unit_count, 50u);
  EXPECT_EQ(heap_run_map_last_free(map.get()).units, 0u);
  EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
}

TEST(RunMapTest, ZerosOfALongFreeRunAreAllTagsButItsOwn) {
  Map map(100);
  heap_run_map_append(map.get(), 90, HEAP_RUN_FREE);
  const uint32_t first = AllocBlock(map.get(), 10);
  ASSERT_EQ(AllocBlock(map.get(), 8), 10u);
  heap_run_map_free(map.get(), first);
  std::vector<heap_run_t> runs;
  heap_run_map_visit_long(
      map.get(), 11,
      [](void *context, heap_run_t found) {
        static_cast<std::vector<heap_run_t> *>(context)->push_back(found);
      },
      &runs);
  ASSERT_EQ(runs.size(), 1u);  // Not the one of 10 units.
  const heap_run_t run = runs[0];
  ASSERT_EQ(Text(run), Text({HEAP_RUN_FREE, 18, 72}));
  uint32_t zero;
  const uint32_t count = heap_run_map_zeros(run, &zero);
  EXPECT_EQ(zero, 18u + 3u);  // Behind its length and its links.
  EXPECT_EQ(zero + count, 18u + 72u - 1u);
  EXPECT_EQ(map->tags[zero - 1] & 7, uint32_t{HEAP_RUN_LINK});
  EXPECT_EQ(map->tags[zero + count] & 7, uint32_t{HEAP_RUN_FOOT});
  for (uint32_t i = 0; i < count; ++i) {
    EXPECT_EQ(map->tags[zero + i], 0u);
  }
  EXPECT_EQ(heap_run_map_zeros({HEAP_RUN_FREE, 0, 4}, &zero), 0u);
}

TEST(RunMapTest, RunOfTheGreatestLengthFitsATag) {
  // 2 GiB of tags, of which a few pages are touched.
  Map map(HEAP_RUN_MAX_UNITS);
  heap_run_map_append(map.get(), HEAP_RUN_MAX_UNITS, HEAP_RUN_FREE);
  EXPECT_EQ(heap_run_map_last_free(map.get()).units,
            static_cast<uint32_t>(HEAP_RUN_MAX_UNITS));
  EXPECT_EQ(AllocBlock(map.get(), HEAP_RUN_MAX_UNITS), 0u);
  EXPECT_EQ(map->free_units, 0u);
  heap_run_map_free(map.get(), 0);
  EXPECT_EQ(map->free_units, static_cast<uint32_t>(HEAP_RUN_MAX_UNITS));
}

// Corruption: what the check says of a map in which one word is wrong.

// A map with every kind of run: 10 block, 3 free, 64 span, 20 free, 8 hole,
// 25 free, 10 block, 21 free (in the list of the one with 20).
Map MapWithAllKinds() {
  Map map(161);
  heap_run_map_append(map.get(), 97, HEAP_RUN_FREE);
  heap_run_map_append(map.get(), 8, HEAP_RUN_HOLE);
  heap_run_map_append(map.get(), 56, HEAP_RUN_FREE);
  EXPECT_EQ(AllocBlock(map.get(), 56), 105u);
  EXPECT_EQ(AllocBlock(map.get(), 13), 0u);
  EXPECT_TRUE(heap_run_map_resize(map.get(), 0, 10));
  EXPECT_EQ(heap_run_map_alloc(map.get(), 64, 51, 64, HEAP_RUN_SPAN), 13u);
  EXPECT_TRUE(heap_run_map_resize(map.get(), 105, 35));
  heap_run_t last = heap_run_map_last_free(map.get());
  EXPECT_EQ(last.units, 21u);
  EXPECT_EQ(heap_run_map_alloc(map.get(), 21, 0, 1, HEAP_RUN_BLOCK), 140u);
  EXPECT_TRUE(heap_run_map_resize(map.get(), 105, 25));
  EXPECT_EQ(AllocBlock(map.get(), 10), 130u);
  heap_run_map_free(map.get(), 105);
  heap_run_map_free(map.get(), 140);
  EXPECT_EQ(heap_run_map_check(map.get()), nullptr);
  return map;
}

uint32_t Tag(heap_run_kind_t kind, uint32_t value) {
  return value << 3 | static_cast<uint32_t>(kind);
}

struct Corruption {
  const char *message;
  uint32_t unit;
  uint32_t tag;
};

TEST(RunMapTest, CheckNamesEachInvariantThatOneTagBreaks) {
  const Corruption corruptions[] = {
      {"run map: runs do not tile the arena", 0, Tag(HEAP_RUN_BLOCK, 0)},
      {"run map: runs do not tile the arena", 0, Tag(HEAP_RUN_BLOCK, 163)},
      {"run map: runs do not tile the arena", 13, Tag(HEAP_RUN_FOOT, 64)},
      {"run map: runs do not tile the arena", 140, Tag(HEAP_RUN_FREE, 23)},
      {"run map: wrong tag inside a run", 1, Tag(HEAP_RUN_BLOCK, 3)},
      {"run map: wrong tag inside a run", 1, Tag(HEAP_RUN_NOTHING, 1)},
      {"run map: wrong tag inside a run", 12, 0},
      {"run map: wrong tag inside a run", 142, 0},
      {"run map: foot and head of a free run differ", 12,
       Tag(HEAP_RUN_FOOT, 2)},
      {"run map: two free runs side by side", 130, Tag(HEAP_RUN_FREE, 10)},
      {"run map: bins and free runs differ", 78, Tag(HEAP_RUN_LINK, 1)},
      {"run map: bins and free runs differ", 142, Tag(HEAP_RUN_LINK, 0)},
      {"run map: bins and free runs differ", 142, Tag(HEAP_RUN_LINK, 162)},
      {"run map: bins and free runs differ", 142,
       Tag(HEAP_RUN_LINK, HEAP_RUN_MAX_UNITS)},
  };
  for (const Corruption &corruption : corruptions) {
    Map map = MapWithAllKinds();
    // Where a block becomes free it also needs a free run's inner tags.
    if (corruption.unit == 130) {
      map->tags[131] = Tag(HEAP_RUN_LINK, 0);
      map->tags[132] = Tag(HEAP_RUN_LINK, 0);
      map->tags[139] = Tag(HEAP_RUN_FOOT, 10);
    }
    map->tags[corruption.unit] = corruption.tag;
    EXPECT_STREQ(heap_run_map_check(map.get()), corruption.message)
        << "unit " << corruption.unit << " tag " << corruption.tag;
  }
}

TEST(RunMapTest, CheckNoticesWrongBinsAndCount) {
  for (size_t bin = 0; bin < HEAP_RUN_BIN_COUNT; ++bin) {
    for (uint32_t first : {0u, 1u, 11u, 78u, 141u, 200u, UINT32_MAX}) {
      Map map = MapWithAllKinds();
      if (map->bins[bin] == first) {
        continue;
      }
      map->bins[bin] = first;
      EXPECT_STREQ(heap_run_map_check(map.get()),
                   "run map: bins and free runs differ");
    }
    Map map = MapWithAllKinds();
    map->bin_bitmap[bin / 64] ^= UINT64_C(1) << bin % 64;
    EXPECT_STREQ(heap_run_map_check(map.get()),
                 "run map: bins and free runs differ");
  }
  Map map = MapWithAllKinds();
  ++map->free_units;
  EXPECT_STREQ(heap_run_map_check(map.get()), "run map: wrong free_units");
}

// Every tag, replaced by every kind with several values: the check notices all
// but those that only say which kind of live run it is.
TEST(RunMapTest, CheckNoticesEveryWrongTag) {
  Map sound = MapWithAllKinds();
  for (uint32_t unit = 0; unit < sound->unit_count; ++unit) {
    const uint32_t old_tag = sound->tags[unit];
    for (uint32_t kind = 0; kind < 8; ++kind) {
      for (uint32_t value :
           {old_tag >> 3, (old_tag >> 3) + 1, 0u, 1u, 2u, 3u, 4u, 14u, 20u, 78u,
            106u, 141u, static_cast<uint32_t>(HEAP_RUN_MAX_UNITS)}) {
        const uint32_t tag = value << 3 | kind;
        const auto is_live = [](uint32_t t) {
          return (t & 7) >= HEAP_RUN_BLOCK && (t & 7) <= HEAP_RUN_HOLE;
        };
        if (tag == old_tag ||
            (tag >> 3 == old_tag >> 3 && is_live(tag) && is_live(old_tag))) {
          continue;
        }
        Map map = sound;
        map->tags[unit] = tag;
        EXPECT_NE(heap_run_map_check(map.get()), nullptr)
            << "unit " << unit << ": " << old_tag << " became " << tag;
      }
    }
  }
}

// The model: runs by first unit, free ones joined.

struct ModelRun {
  heap_run_kind_t kind;
  uint32_t units;
};

class Model {
 public:
  const std::map<uint32_t, ModelRun> &runs() const {
    return runs_;
  }
  uint32_t unit_count() const {
    return unit_count_;
  }

  void Append(uint32_t units, heap_run_kind_t kind) {
    runs_[unit_count_] = {kind, units};
    unit_count_ += units;
    Join();
  }

  void Truncate(uint32_t units) {
    auto last = std::prev(runs_.end());
    ASSERT_EQ(last->second.kind, HEAP_RUN_FREE);
    last->second.units -= units;
    if (last->second.units == 0) {
      runs_.erase(last);
    }
    unit_count_ -= units;
  }

  void Alloc(uint32_t unit, uint32_t units, heap_run_kind_t kind) {
    auto run = std::prev(runs_.upper_bound(unit));
    ASSERT_EQ(run->second.kind, HEAP_RUN_FREE);
    const uint32_t start = run->first;
    const uint32_t end = start + run->second.units;
    ASSERT_LE(unit + units, end);
    runs_.erase(run);
    if (start < unit) {
      runs_[start] = {HEAP_RUN_FREE, unit - start};
    }
    runs_[unit] = {kind, units};
    if (unit + units < end) {
      runs_[unit + units] = {HEAP_RUN_FREE, end - unit - units};
    }
  }

  heap_run_t Free(uint32_t unit) {
    runs_[unit].kind = HEAP_RUN_FREE;
    Join();
    auto run = std::prev(runs_.upper_bound(unit));
    return {HEAP_RUN_FREE, run->first, run->second.units};
  }

  bool Resize(uint32_t unit, uint32_t units) {
    const uint32_t old_units = runs_[unit].units;
    auto next = runs_.find(unit + old_units);
    const bool next_free =
        next != runs_.end() && next->second.kind == HEAP_RUN_FREE;
    const uint32_t available = old_units + (next_free ? next->second.units : 0);
    if (units > available) {
      return false;
    }
    if (next_free) {
      runs_.erase(next);
    }
    runs_[unit].units = units;
    if (units < available) {
      runs_[unit + units] = {HEAP_RUN_FREE, available - units};
    }
    Join();
    return true;
  }

  // Returns where the map must put a run while no bin has more runs than a
  // search looks at: lowest address among those of the first length class.
  std::optional<uint32_t> Placement(uint32_t units, uint64_t bias,
                                    uint64_t align) const {
    std::optional<uint32_t> best;
    uint32_t best_bin = UINT32_MAX;
    for (const auto &[start, run] : runs_) {
      if (run.kind != HEAP_RUN_FREE || run.units < kMinUnits ||
          LengthClass(run.units) < LengthClass(units)) {
        continue;
      }
      const uint64_t skip = (align - (bias + start) % align) % align;
      if (skip + units <= run.units && LengthClass(run.units) < best_bin) {
        best_bin = LengthClass(run.units);
        best = start + static_cast<uint32_t>(skip);
      }
    }
    return best;
  }

  size_t FreeRunCount() const {
    size_t count = 0;
    for (const auto &[start, run] : runs_) {
      count += run.kind == HEAP_RUN_FREE;
    }
    return count;
  }

 private:
  // Eight to a doubling: the exponent and the three bits behind the first.
  static uint32_t LengthClass(uint32_t units) {
    uint32_t log2 = 0;
    while (units >> (log2 + 1) != 0) {
      ++log2;
    }
    return log2 * 8 + (units * 8 >> log2) % 8;
  }

  void Join() {
    for (auto run = runs_.begin(); run != runs_.end();) {
      auto next = std::next(run);
      if (next != runs_.end() && run->second.kind == HEAP_RUN_FREE &&
          next->second.kind == HEAP_RUN_FREE) {
        run->second.units += next->second.units;
        runs_.erase(next);
      } else {
        run = next;
      }
    }
  }

  std::map<uint32_t, ModelRun> runs_;
  uint32_t unit_count_ = 0;
};

void ExpectSame(const Model &model, Map *map) {
  ASSERT_EQ(heap_run_map_check(map->get()), nullptr);
  ASSERT_EQ((*map)->unit_count, model.unit_count());
  uint32_t free_units = 0;
  for (const auto &[start, run] : model.runs()) {
    const heap_run_t want = {run.kind, start, run.units};
    for (uint32_t unit :
         {start, start + run.units / 2, start + run.units - 1}) {
      ASSERT_EQ(Text(heap_run_map_find(map->get(), unit)), Text(want));
    }
    free_units += run.kind == HEAP_RUN_FREE ? run.units : 0;
  }
  ASSERT_EQ((*map)->free_units, free_units);
}

class RunMapModelTest : public testing::Test {
 protected:
  void Run(uint32_t capacity, uint32_t max_units, int steps, uint64_t seed) {
    Random random(seed);
    Map map(capacity);
    Model model;
    std::vector<uint32_t> live;
    for (int step = 0; step < steps && !HasFatalFailure(); ++step) {
      switch (random.Below(8)) {
        case 0:
          Append(&random, &map, &model);
          break;
        case 1:
          Truncate(&random, &map, &model);
          break;
        case 2:
        case 3:
          Resize(&random, &map, &model, live, max_units);
          break;
        case 4:
        case 5:
          Free(&random, &map, &model, &live);
          break;
        default:
          Alloc(&random, &map, &model, &live, max_units);
      }
      ExpectSame(model, &map);
    }
  }

 private:
  static void Append(Random *random, Map *map, Model *model) {
    const uint32_t room = (*map)->tag_capacity - (*map)->unit_count;
    if (room == 0) {
      return;
    }
    const auto units = static_cast<uint32_t>(random->Below(room) + 1);
    const auto kind = random->OneIn(4) ? HEAP_RUN_HOLE : HEAP_RUN_FREE;
    heap_run_map_append(map->get(), units, kind);
    model->Append(units, kind);
  }

  static void Truncate(Random *random, Map *map, Model *model) {
    const heap_run_t last = heap_run_map_last_free(map->get());
    if (last.units > 0 && random->OneIn(4)) {
      const auto units = static_cast<uint32_t>(random->Below(last.units) + 1);
      heap_run_map_truncate(map->get(), units);
      model->Truncate(units);
    }
  }

  static void Alloc(Random *random, Map *map, Model *model,
                    std::vector<uint32_t> *live, uint32_t max_units) {
    auto units = static_cast<uint32_t>(random->Below(max_units + 1));
    const uint64_t align = UINT64_C(1)
                           << (random->OneIn(2) ? 0 : random->Below(7));
    const uint64_t bias = random->Below(1000);
    const auto kind = random->OneIn(4) ? HEAP_RUN_SPAN : HEAP_RUN_BLOCK;
    const uint32_t unit =
        heap_run_map_alloc(map->get(), units, bias, align, kind);
    units = units < kMinUnits ? kMinUnits : units;
    if (model->FreeRunCount() <= 16) {
      ASSERT_EQ(unit, model->Placement(units, bias, align)
                          .value_or(static_cast<uint32_t>(HEAP_RUN_NONE)));
    }
    if (unit != HEAP_RUN_NONE) {
      ASSERT_EQ((unit + bias) % align, 0u);
      model->Alloc(unit, units, kind);
      live->push_back(unit);
    }
  }

  static void Free(Random *random, Map *map, Model *model,
                   std::vector<uint32_t> *live) {
    if (live->empty()) {
      return;
    }
    std::swap((*live)[random->Below(live->size())], live->back());
    const uint32_t unit = live->back();
    live->pop_back();
    ASSERT_EQ(Text(heap_run_map_free(map->get(), unit)),
              Text(model->Free(unit)));
  }

  static void Resize(Random *random, Map *map, Model *model,
                     const std::vector<uint32_t> &live, uint32_t max_units) {
    if (live.empty()) {
      return;
    }
    const uint32_t unit = live[random->Below(live.size())];
    if (model->runs().at(unit).kind != HEAP_RUN_BLOCK) {
      return;
    }
    const auto units = static_cast<uint32_t>(random->Below(max_units + 1));
    ASSERT_EQ(heap_run_map_resize(map->get(), unit, units),
              model->Resize(unit, units < kMinUnits ? kMinUnits : units));
  }
};

TEST_F(RunMapModelTest, SmallMapsAgreeWithTheModel) {
  const uint64_t seed = heap_testing::Seed();
  for (uint64_t i = 0; i < 200 && !HasFatalFailure(); ++i) {
    Run(64 + i, 12, 300, seed + i);
  }
}

TEST_F(RunMapModelTest, BigMapsAgreeWithTheModel) {
  const uint64_t seed = heap_testing::Seed();
  Run(20000, 700, 5000, seed);
  Run(4000, 70, 5000, seed + 1);
}

}  // namespace
