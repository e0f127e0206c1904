// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does an object of 64 bytes cost from a cache, and what from others?
//
//   bazel run //slab:slab_compare [-- SECTION... --rounds=N --peer=NAME=FILE]
//
// Sections: time, large, remote, bulk, memory. All contenders run in one
// process, one after the other in each round, so that whatever else the
// machine does hits all of them; what is printed is the median of the rounds
// and its ratio to the first contender's. Peers that are not installed are
// left out: libjemalloc2, libmimalloc2.0, libglib2.0-0 are looked for at run
// time, Boost.Pool when this is compiled; --peer adds a shared object that has
// a malloc. Two floors are of the party, for one thread and without a check:
// the intrusive list, and a stack of pointers that looks at no object.
//
//   pair          alloc, free; again and again
//   batch         1,000 allocs, then 1,000 frees in the same order
//   random        10,000 allocs, then 10,000 frees in random order
//   1M replace    of 1,000,000 live objects, 100 random ones are freed and as
//                 many allocated, again and again; untouched, or the first
//                 word of each read before the free and written after alloc
//   1M all        1,000,000 allocs, then as many frees in random order
//   remote        pipeline: one thread allocates, another frees what it is
//                 sent, both at once, wall time an object; in turn: one thread
//                 allocates 10,000, then another frees them
//   bulk          64 at once against 64 single calls
//   memory        resident memory for 10,000,000 objects and after, and of
//                 1,000 caches used by 64 threads
//
// A figure is nanoseconds for an alloc and a free together, but for remote,
// where they stand apart.
//
// Cache misses of a pair with a million live objects, where the processor does
// not count them: the difference of two runs that simulate its caches,
//
//   GLIBC_TUNABLES=glibc.rtld.optional_static_tls=16384
//     valgrind --tool=cachegrind --cache-sim=yes --D1=49152,12,64
//     --LL=2097152,16,64 bazel-bin/slab/slab_compare --only=slab --bursts=N
//
// with N = 1000 and N = 11000 (a burst is 100 pairs), by a million.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "slab/compare_contenders.h"
#include "slab/compare_memory.h"
#include "slab/slab.h"

namespace {

using namespace compare;

double NowNs() {
  return std::chrono::duration<double, std::nano>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Stops the compiler from seeing through a pointer.
void Escape(void *ptr) {
  __asm__ volatile("" : : "r"(ptr) : "memory");
}

// ---- measuring ----

// A column of a table: one number a round and contender.
struct Table {
  std::vector<std::string> names;
  std::vector<std::string> columns;
  // [contender][column][round]
  std::vector<std::vector<std::vector<double>>> samples;
};

// Which of the rounds' figures is printed: the median. A tenth, say, is closer
// to what a machine without other work would show.
double quantile = 0.5;

double Quantile(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(static_cast<double>(values.size()) *
                                    quantile)];
}

void Print(const char *title, const Table &table) {
  std::printf("\n%s\n%-24s", title, "");
  for (const std::string &column : table.columns) {
    std::printf(" %16s", column.c_str());
  }
  std::printf("\n");
  for (size_t i = 0; i < table.names.size(); ++i) {
    std::printf("%-24s", table.names[i].c_str());
    for (size_t j = 0; j < table.columns.size(); ++j) {
      const double median = Quantile(table.samples[i][j]);
      std::vector<double> ratios;
      for (size_t k = 0; k < table.samples[i][j].size(); ++k) {
        ratios.push_back(table.samples[i][j][k] / table.samples[0][j][k]);
      }
      std::printf(" %8.2f (%5.2f)", median, Quantile(ratios));
    }
    std::printf("\n");
  }
}

using Measure = std::function<std::vector<double>()>;
struct Contender {
  std::string name;
  Measure measure;  // One round: a number a column.
};

void Compare(const char *title, const std::vector<std::string> &columns,
             const std::vector<Contender> &contenders, int rounds) {
  Table table;
  table.columns = columns;
  for (const Contender &contender : contenders) {
    table.names.push_back(contender.name);
  }
  table.samples.assign(contenders.size(),
                       std::vector<std::vector<double>>(columns.size()));
  // The first rounds warm up.
  const int warm_up = rounds > 4 ? 3 : 0;
  for (int round = 0; round < rounds + warm_up; ++round) {
    for (size_t i = 0; i < contenders.size(); ++i) {
      const std::vector<double> numbers = contenders[i].measure();
      for (size_t j = 0; j < numbers.size() && round >= warm_up; ++j) {
        table.samples[i][j].push_back(numbers[j]);
      }
    }
  }
  Print(title, table);
}

// All contenders, measured by `Bench<T>`.
template <template <typename> class Bench>
std::vector<Contender> All() {
  std::vector<Contender> contenders;
  ForEachContender([&](auto pointer, const char *name) {
    using T = typename decltype(pointer)::element_type;
    if constexpr (Bench<T>::kFits) {
      auto bench = std::make_shared<Bench<T>>();
      contenders.push_back({name, [bench] {
                              return bench->Run();
                            }});
    }
  });
  return contenders;
}

std::vector<uint32_t> Shuffled(size_t count) {
  std::vector<uint32_t> order(count);
  for (size_t i = 0; i < count; ++i) {
    order[i] = static_cast<uint32_t>(i);
  }
  std::mt19937 random(1);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

// ---- time: a working set that fits the cache ----

template <typename T>
struct SmallBench {
  static constexpr bool kFits = true;
  T pair, batch, random;
  std::vector<void *> objects = std::vector<void *>(10000);
  std::vector<uint32_t> order = Shuffled(10000);

  double Pair() {
    constexpr int kCount = 20000;
    const double start = NowNs();
    for (int i = 0; i < kCount; ++i) {
      void *object = pair.Alloc();
      Escape(object);
      pair.Free(object);
    }
    return (NowNs() - start) / kCount;
  }

  double Batch() {
    constexpr int kCount = 1000;
    constexpr int kTimes = 20;
    const double start = NowNs();
    for (int time = 0; time < kTimes; ++time) {
      for (int i = 0; i < kCount; ++i) {
        Escape(objects[i] = batch.Alloc());
      }
      for (int i = 0; i < kCount; ++i) {
        batch.Free(objects[i]);
      }
    }
    return (NowNs() - start) / kCount / kTimes;
  }

  double Random() {
    constexpr int kTimes = 4;
    const double start = NowNs();
    for (int time = 0; time < kTimes; ++time) {
      for (void *&object : objects) {
        Escape(object = random.Alloc());
      }
      for (uint32_t i : order) {
        random.Free(objects[i]);
      }
    }
    return (NowNs() - start) / static_cast<double>(objects.size()) / kTimes;
  }

  std::vector<double> Run() {
    return {Pair(), Batch(), Random()};
  }
};

// ---- large: a million live objects ----

template <typename T>
struct LargeBench {
  static constexpr bool kFits = true;
  static constexpr size_t kLive = 1000000;
  T contender;
  std::vector<void *> objects = std::vector<void *>(kLive);
  std::vector<uint32_t> order = Shuffled(kLive);
  size_t at = 0;

  void Fill() {
    for (void *&object : objects) {
      object = contender.Alloc();
      *static_cast<uint64_t *>(object) = 1;
    }
  }

  // Frees 100 random ones, then allocates as many, again and again.
  double Replace(bool touch, size_t bursts = 3000) {
    constexpr size_t kBurst = 100;
    void **holes[kBurst];
    const double start = NowNs();
    for (size_t i = 0; i < bursts; ++i) {
      for (void **&hole : holes) {
        hole = &objects[order[at]];
        at = at + 1 == kLive ? 0 : at + 1;
        if (touch) {
          ++*static_cast<uint64_t *>(*hole);
        }
        contender.Free(*hole);
      }
      for (void **hole : holes) {
        Escape(*hole = contender.Alloc());
        if (touch) {
          *static_cast<uint64_t *>(*hole) = i;
        }
      }
    }
    return (NowNs() - start) / static_cast<double>(kBurst * bursts);
  }

  double FreeAll() {
    const double start = NowNs();
    for (uint32_t i : order) {
      contender.Free(objects[i]);
    }
    return (NowNs() - start) / kLive;
  }

  std::vector<double> Run() {
    Fill();  // From now on pages are there.
    FreeAll();
    const double start = NowNs();
    Fill();
    const double fill = (NowNs() - start) / kLive;
    const double replace = Replace(false);
    const double touched = Replace(true);
    return {replace, touched, fill + FreeAll()};
  }
};

// ---- remote: freed by another thread ----

class Baton {
 public:
  // Returns when it is `turn`'s turn.
  void Wait(int turn) {
    while (turn_.load(std::memory_order_acquire) != turn) {
      std::this_thread::yield();
    }
  }
  void Pass(int turn) {
    turn_.store(turn, std::memory_order_release);
  }

 private:
  std::atomic<int> turn_{0};
};

// Pointers on their way from one thread to another, some at a time.
class Ring {
 public:
  void Put(void *ptr) {
    if (head_ - tail_seen_ == kSlots) {
      while (head_ - (tail_seen_ = tail_.load(std::memory_order_acquire)) ==
             kSlots) {
        std::this_thread::yield();
      }
    }
    slots_[head_ % kSlots] = ptr;
    if (++head_ % kStep == 0) {
      published_.store(head_, std::memory_order_release);
    }
  }

  void *Take() {
    if (next_ == head_seen_) {
      tail_.store(next_, std::memory_order_release);
      while ((head_seen_ = published_.load(std::memory_order_acquire)) ==
             next_) {
        std::this_thread::yield();
      }
    }
    return slots_[next_++ % kSlots];
  }

 private:
  static constexpr size_t kSlots = 2048;
  static constexpr size_t kStep = 64;
  void *slots_[kSlots];
  // Of the producer.
  alignas(64) size_t head_ = 0;
  size_t tail_seen_ = 0;
  alignas(64) std::atomic<size_t> published_{0};
  // Of the consumer.
  alignas(64) size_t next_ = 0;
  size_t head_seen_ = 0;
  alignas(64) std::atomic<size_t> tail_{0};
};

template <typename T>
struct RemoteBench {
  static constexpr bool kFits = T::kManyThreads;
  static constexpr size_t kPiped = 64 * 3000;
  T contender;
  std::vector<void *> objects = std::vector<void *>(10000);
  double free_ns = 0;
  bool is_piped = false;
  Baton baton;
  Ring ring;
  std::thread other{[this] {
    for (;;) {
      baton.Wait(1);
      if (objects.empty()) {
        return;
      }
      if (is_piped) {
        for (size_t i = 0; i < kPiped; ++i) {
          contender.Free(ring.Take());
        }
      } else {
        const double start = NowNs();
        for (void *object : objects) {
          contender.Free(object);
        }
        free_ns = (NowNs() - start) / static_cast<double>(objects.size());
      }
      baton.Pass(0);
    }
  }};

  ~RemoteBench() {
    objects.clear();
    baton.Pass(1);
    other.join();
  }

  void *AllocAndWrite() {
    void *object = contender.Alloc();
    *static_cast<uint64_t *>(object) = 1;
    return object;
  }

  double Piped() {
    is_piped = true;
    const double start = NowNs();
    baton.Pass(1);
    for (size_t i = 0; i < kPiped; ++i) {
      ring.Put(AllocAndWrite());
    }
    baton.Wait(0);
    is_piped = false;
    return (NowNs() - start) / kPiped;
  }

  std::vector<double> Run() {
    double alloc = 0;
    double free = 0;
    constexpr int kTimes = 5;
    for (int i = 0; i < kTimes; ++i) {
      const double start = NowNs();
      for (void *&object : objects) {
        object = AllocAndWrite();
      }
      alloc += (NowNs() - start) / static_cast<double>(objects.size());
      baton.Pass(1);
      baton.Wait(0);
      free += free_ns;
    }
    return {Piped(), free / kTimes, alloc / kTimes};
  }
};

// ---- bulk ----

void CompareBulk(int rounds) {
  constexpr size_t kCount = 64;
  constexpr int kTimes = 500;
  slab_cache_t *cache = MakeCache();
  auto objects = std::make_shared<std::vector<void *>>(kCount);
  const Contender singles = {
      "64 singles", [=] {
        const double start = NowNs();
        for (int time = 0; time < kTimes; ++time) {
          for (void *&object : *objects) {
            object = slab_alloc(cache);
          }
          for (void *object : *objects) {
            slab_free(cache, object);
          }
        }
        return std::vector<double>{(NowNs() - start) / kTimes / kCount};
      }};
  const Contender bulk = {
      "bulk of 64", [=] {
        const double start = NowNs();
        for (int time = 0; time < kTimes; ++time) {
          if (slab_alloc_bulk(cache, kCount, objects->data()) != 0) {
            std::exit(1);
          }
          slab_free_bulk(cache, kCount, objects->data());
        }
        return std::vector<double>{(NowNs() - start) / kTimes / kCount};
      }};
  Compare("Bulk, ns an object (ratio to the first line)", {"alloc + free"},
          {singles, bulk}, rounds);
}

// Does what `LargeBench` does with one contender, for a simulator to look at.
void RunOnly(const std::string &only, size_t bursts) {
  ForEachContender([&](auto pointer, const char *name) {
    using T = typename decltype(pointer)::element_type;
    if (only == name) {
      auto bench = std::make_unique<LargeBench<T>>();
      bench->Fill();
      bench->Replace(false, bursts);
    }
  });
}

// jemalloc wants more static TLS than a program has left for what it loads
// late; glibc takes orders from the environment only.
void EnsureStaticTls(char **argv) {
  constexpr const char *kName = "GLIBC_TUNABLES";
  if (std::getenv(kName) == nullptr) {
    setenv(kName, "glibc.rtld.optional_static_tls=16384", 1);
    execv("/proc/self/exe", argv);
  }
}

}  // namespace

int main(int argc, char **argv) {
  EnsureStaticTls(argv);
  int rounds = 41;
  std::string sections;
  std::string only;
  size_t bursts = 1000;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--rounds=", 9) == 0) {
      rounds = std::atoi(argv[i] + 9);
    } else if (std::strncmp(argv[i], "--quantile=", 11) == 0) {
      quantile = std::atof(argv[i] + 11);
    } else if (std::strncmp(argv[i], "--only=", 7) == 0) {
      only = argv[i] + 7;
    } else if (std::strncmp(argv[i], "--bursts=", 9) == 0) {
      bursts = static_cast<size_t>(std::atol(argv[i] + 9));
    } else if (std::strncmp(argv[i], "--peer=", 7) == 0) {
      AddPeer(argv[i] + 7);
    } else {
      sections += std::string(" ") + argv[i];
    }
  }
  auto wanted = [&](const char *section) {
    return sections.empty() || sections.find(section) != std::string::npos;
  };
  if (!only.empty()) {
    Load();
    RunOnly(only, bursts);
    return 0;
  }
  // Memory first: children without threads.
  if (wanted("memory")) {
    ReportMemory(rounds == 1);
  }
  Load();
  if (wanted("time")) {
    Compare("Small working set, ns a pair (median ratio to the first line)",
            {"pair", "batch 1,000", "random 10,000"}, All<SmallBench>(),
            rounds);
  }
  if (wanted("bulk")) {
    CompareBulk(rounds);
  }
  if (wanted("remote")) {
    Compare("Freed by another thread, ns an object (ratio to the first line)",
            {"pipeline", "free in turn", "alloc in turn"}, All<RemoteBench>(),
            rounds);
  }
  if (wanted("large")) {
    Compare("A million live objects, ns a pair (ratio to the first line)",
            {"replace", "replace, touch", "all, random"}, All<LargeBench>(),
            rounds == 1 ? 1 : std::min(rounds, 11));
  }
  return 0;
}
