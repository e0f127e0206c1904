// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does each strategy cost in time and in memory, and what do the options
// change?
//
//   bazel run //heap:private_heap_benchmark [-- --rounds=N --pairs=N]
//
// All contenders do the same: 20,000 blocks of 16 bytes to 4 KiB are live, each
// doubling of the size as likely; then one is freed at random and another one
// allocated, again and again. They take turns in each round, so that whatever
// else the machine does hits all of them; each starts with an
// empty heap, whose memory has been used by the round before.
//
//   ns a pair    median over the rounds of the time for a free and an alloc
//   ratio        median over the rounds of its ratio to the first contender's
//   steps        of the longest call, as heap_stats_get_in() counts them
//   longest ns   each call's shortest time over the rounds, of these the
//                longest: the calls are the same in each round, but not what
//                interrupts them
//   footprint    from the lowest to the highest byte that was ever in a block,
//                divided by the most that was asked for at once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "heap/heap_patterns.h"
#include "heap/private_heap.h"

namespace {

constexpr size_t kLive = 20000;

double NowNs() {
  return std::chrono::duration<double, std::nano>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// One pair: the block in `slot` goes, one of `size_bytes` comes.
struct Pair {
  uint32_t slot;
  uint32_t size_bytes;
};

std::vector<Pair> MakePairs(size_t count) {
  heap_testing::Random random(1);
  std::vector<Pair> pairs(kLive + count);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const uint64_t low = uint64_t{16} << random.Below(8);
    pairs[i].slot = static_cast<uint32_t>(i < kLive ? i : random.Below(kLive));
    pairs[i].size_bytes = static_cast<uint32_t>(low + random.Below(low + 1));
  }
  return pairs;
}

class Contender {
 public:
  virtual ~Contender() = default;
  virtual void Start() = 0;  // No block is there.
  virtual void *Alloc(size_t size_bytes) = 0;
  virtual void Free(void *ptr) = 0;
  virtual uint64_t Steps() = 0;  // Of the longest call.
  virtual void End() = 0;
};

class PrivateHeap : public Contender {
 public:
  explicit PrivateHeap(const heap_options_t &options) : options_(options) {
  }
  ~PrivateHeap() override {
    heap_destroy(heap_);
  }
  PrivateHeap(const PrivateHeap &) = delete;
  PrivateHeap &operator=(const PrivateHeap &) = delete;

  void Start() override {
    heap_ = heap_ != nullptr ? heap_ : heap_create(&options_);
    if (heap_ == nullptr) {
      std::perror("heap_create");
      std::exit(1);
    }
  }
  void *Alloc(size_t size_bytes) override {
    return heap_alloc_in(heap_, size_bytes);
  }
  void Free(void *ptr) override {
    heap_free_in(heap_, ptr);
  }
  uint64_t Steps() override {
    heap_private_stats_t stats;
    heap_stats_get_in(heap_, &stats);
    return stats.max_steps;
  }
  void End() override {
    heap_reset(heap_);
  }

 private:
  const heap_options_t options_;
  heap_t *heap_ = nullptr;
};

struct Row {
  std::string name;
  std::unique_ptr<Contender> contender;
  std::vector<double> pair_ns;    // By round.
  std::vector<uint32_t> call_ns;  // By call: the shortest.
  uint64_t steps = 0;
  double footprint = 0;
};

// Each workload starts with the blocks that are live from then on.
void *Replace(Contender *contender, void *old, size_t size_bytes) {
  contender->Free(old);
  void *ptr = contender->Alloc(size_bytes);
  if (ptr == nullptr) {
    std::perror("alloc");
    std::exit(1);
  }
  // A program would write to it.
  *static_cast<uint64_t *>(ptr) = size_bytes;
  return ptr;
}

void Fill(Row *row, const std::vector<Pair> &pairs,
          std::vector<void *> *blocks) {
  row->contender->Start();
  blocks->assign(kLive, nullptr);
  for (size_t i = 0; i < kLive; ++i) {
    (*blocks)[i] = Replace(row->contender.get(), nullptr, pairs[i].size_bytes);
  }
}

void MeasurePairs(Row *row, const std::vector<Pair> &pairs,
                  std::vector<void *> *blocks) {
  Fill(row, pairs, blocks);
  const double start = NowNs();
  for (size_t i = kLive; i < pairs.size(); ++i) {
    void *&block = (*blocks)[pairs[i].slot];
    block = Replace(row->contender.get(), block, pairs[i].size_bytes);
  }
  row->pair_ns.push_back((NowNs() - start) /
                         static_cast<double>(pairs.size() - kLive));
  row->contender->End();
}

void MeasureCalls(Row *row, const std::vector<Pair> &pairs,
                  std::vector<void *> *blocks) {
  const auto note = [row](size_t call, double start) {
    const auto ns = static_cast<uint32_t>(NowNs() - start);
    row->call_ns[call] = std::min(row->call_ns[call], ns);
  };
  Fill(row, pairs, blocks);
  row->call_ns.resize(2 * pairs.size(), UINT32_MAX);
  for (size_t i = kLive; i < pairs.size(); ++i) {
    void *&block = (*blocks)[pairs[i].slot];
    const double start = NowNs();
    row->contender->Free(block);
    note(2 * i, start);
    const double middle = NowNs();
    block = row->contender->Alloc(pairs[i].size_bytes);
    note(2 * i + 1, middle);
  }
  row->contender->End();
}

void MeasureFootprint(Row *row, const std::vector<Pair> &pairs,
                      std::vector<void *> *blocks) {
  std::vector<size_t> sizes(kLive);
  uintptr_t low = UINTPTR_MAX;
  uintptr_t high = 0;
  size_t live_bytes = 0;
  size_t peak_bytes = 0;
  row->contender->Start();
  blocks->assign(kLive, nullptr);
  for (const Pair &pair : pairs) {
    void *&block = (*blocks)[pair.slot];
    block = Replace(row->contender.get(), block, pair.size_bytes);
    live_bytes += pair.size_bytes - sizes[pair.slot];
    sizes[pair.slot] = pair.size_bytes;
    peak_bytes = std::max(peak_bytes, live_bytes);
    low = std::min(low, reinterpret_cast<uintptr_t>(block));
    high = std::max(high, reinterpret_cast<uintptr_t>(block) + pair.size_bytes);
  }
  row->steps = row->contender->Steps();
  row->footprint =
      static_cast<double>(high - low) / static_cast<double>(peak_bytes);
  row->contender->End();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Print(const char *title, const std::vector<Row> &rows) {
  std::printf("\n%-28s %9s %6s %7s %11s %10s\n", title, "ns a pair", "ratio",
              "steps", "longest ns", "footprint");
  for (const Row &row : rows) {
    std::vector<double> ratios;
    for (size_t i = 0; i < row.pair_ns.size(); ++i) {
      ratios.push_back(row.pair_ns[i] / rows[0].pair_ns[i]);
    }
    uint32_t longest_ns = 0;
    for (uint32_t ns : row.call_ns) {
      longest_ns = ns == UINT32_MAX ? longest_ns : std::max(longest_ns, ns);
    }
    std::printf("%-28s %9.1f %6.2f %7llu %11u %10.3f\n", row.name.c_str(),
                Median(row.pair_ns), Median(ratios),
                static_cast<unsigned long long>(row.steps), longest_ns,
                row.footprint);
  }
}

void Compare(const char *title, std::vector<Row> *rows,
             const std::vector<Pair> &pairs, int rounds) {
  std::vector<void *> blocks;
  for (int round = 0; round < rounds; ++round) {
    for (Row &row : *rows) {
      MeasurePairs(&row, pairs, &blocks);
    }
    for (Row &row : *rows) {
      MeasureCalls(&row, pairs, &blocks);
    }
  }
  for (Row &row : *rows) {
    MeasureFootprint(&row, pairs, &blocks);
  }
  Print(title, *rows);
}

heap_options_t Options(heap_strategy_t strategy) {
  heap_options_t options = {};
  options.strategy = strategy;
  options.single_threaded = true;
  return options;
}

void Add(std::vector<Row> *rows, const std::string &name,
         const heap_options_t &options) {
  Row row;
  row.name = name;
  row.contender = std::make_unique<PrivateHeap>(options);
  rows->push_back(std::move(row));
}

std::vector<Row> Strategies() {
  std::vector<Row> rows;
  Add(&rows, "tlsf", Options(HEAP_TLSF));
  Add(&rows, "buddy", Options(HEAP_BUDDY));
  Add(&rows, "best fit", Options(HEAP_BEST_FIT));
  Add(&rows, "next fit", Options(HEAP_NEXT_FIT));
  Add(&rows, "first fit", Options(HEAP_FIRST_FIT));
  Add(&rows, "segregated", Options(HEAP_SEGREGATED));
  heap_options_t options = Options(HEAP_TLSF);
  options.single_threaded = false;
  Add(&rows, "tlsf, with its lock", options);
  options.strategy = HEAP_SEGREGATED;
  Add(&rows, "segregated, with its lock", options);
  return rows;
}

std::vector<Row> Tuned() {
  std::vector<Row> rows;
  for (heap_strategy_t strategy : {HEAP_TLSF, HEAP_BEST_FIT}) {
    const std::string name = strategy == HEAP_TLSF ? "tlsf" : "best fit";
    Add(&rows, name, Options(strategy));
    for (size_t granule_bytes : {8, 32, 64, 256}) {
      heap_options_t options = Options(strategy);
      options.granule_bytes = granule_bytes;
      Add(&rows, name + ", granule_bytes " + std::to_string(granule_bytes),
          options);
    }
    for (size_t split_bytes : {64, 256, 1024}) {
      heap_options_t options = Options(strategy);
      options.split_bytes = split_bytes;
      Add(&rows, name + ", split_bytes " + std::to_string(split_bytes),
          options);
    }
  }
  for (unsigned lists_log2 : {1u, 2u, 3u, 5u}) {
    heap_options_t options = Options(HEAP_TLSF);
    options.tlsf_lists_log2 = lists_log2;
    Add(&rows, "tlsf, tlsf_lists_log2 " + std::to_string(lists_log2), options);
  }
  Add(&rows, "segregated", Options(HEAP_SEGREGATED));
  for (size_t span_bytes : {1024, 4096, 16384}) {
    heap_options_t options = Options(HEAP_SEGREGATED);
    options.span_bytes = span_bytes;
    Add(&rows, "segregated, span_bytes " + std::to_string(span_bytes), options);
  }
  return rows;
}

}  // namespace

int main(int argc, char **argv) {
  int rounds = 5;
  size_t pairs = 200000;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--rounds=", 9) == 0) {
      rounds = std::max(1, std::atoi(argv[i] + 9));
    } else if (std::strncmp(argv[i], "--pairs=", 8) == 0) {
      pairs = static_cast<size_t>(std::max(1, std::atoi(argv[i] + 8)));
    } else {
      std::fprintf(stderr, "usage: %s [--rounds=N] [--pairs=N]\n", argv[0]);
      return 2;
    }
  }
  const std::vector<Pair> all = MakePairs(pairs);
  std::vector<Row> strategies = Strategies();
  Compare("strategies", &strategies, all, rounds);
  std::vector<Row> tuned = Tuned();
  Compare("options", &tuned, all, rounds);
  return 0;
}
