// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What do the locks and the heap of shmipc cost, beside what a C library and
// Boost.Interprocess offer between processes (and malloc within one)? Channels
// are in channel_benchmark.cc.
//
//   bazel run //shmipc:benchmark  [-- --rounds=9 --heap --channels --smoke]
//
// All contenders run in turn, round after round, so that slow and fast states
// of the machine hit all of them; medians, the range, and ratios of medians.

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#if __has_include(<boost/interprocess/sync/interprocess_mutex.hpp>)
#include <boost/interprocess/managed_external_buffer.hpp>
#include <boost/interprocess/mem_algo/rbtree_best_fit.hpp>
#include <boost/interprocess/sync/interprocess_mutex.hpp>
#define HAS_BOOST_INTERPROCESS 1
#else
#define HAS_BOOST_INTERPROCESS 0
#endif

#include "shmipc/block.h"
#include "shmipc/event.h"
#include "shmipc/mutex.h"
#include "shmipc/rwlock.h"
#include "shmipc/semaphore.h"
#include "shmipc/shmipc_benchmarking.h"

namespace {

using benchmarking::Bar;
using benchmarking::Check;
using benchmarking::Compare;
using benchmarking::Contender;
using benchmarking::Die;
using benchmarking::flags;
using benchmarking::FutexWait;
using benchmarking::FutexWake;
using benchmarking::NowNs;
using benchmarking::region;
using benchmarking::share_fd;

// All that the contenders use, in one region. Own cache lines.
struct Board {
  alignas(64) shmipc_mutex_t mutex;
  alignas(64) shmipc_mutex_t shared_mutex;
  alignas(64) shmipc_rwlock_t rwlock;
  alignas(64) shmipc_semaphore_t semaphore;
  alignas(64) shmipc_event_t events[2];
  alignas(64) shmipc_semaphore_t turns[2];
  alignas(64) pthread_mutex_t plain;
  alignas(64) pthread_mutex_t robust;
  alignas(64) pthread_rwlock_t pthread_rwlock;
  alignas(64) sem_t sem;
  alignas(64) sem_t sem_turns[2];
  alignas(64) std::atomic<uint32_t> owner;
  alignas(64) std::atomic<uint32_t> raw[2];
  alignas(64) std::atomic<uint32_t> turn;
  alignas(64) uint64_t counter;
  alignas(64) std::atomic<uint64_t> batch;
  alignas(64) uint64_t offsets[1000];
#if HAS_BOOST_INTERPROCESS
  alignas(64) char boost[sizeof(boost::interprocess::interprocess_mutex)];
#endif
};

Board *board;

#if HAS_BOOST_INTERPROCESS
boost::interprocess::interprocess_mutex *Boost() {
  return reinterpret_cast<boost::interprocess::interprocess_mutex *>(
      board->boost);
}
#endif

template <typename Work>
double TimePairs(const Work &work) {
  double start = NowNs();
  for (int64_t i = 0; i < flags.pairs; i++) {
    work();
  }
  return (NowNs() - start) / static_cast<double>(flags.pairs);
}

void LockOwnerWord() {
  uint32_t expected = 0;
  while (!board->owner.compare_exchange_weak(expected, 1,
                                             std::memory_order_acquire)) {
    expected = 0;
  }
}

void Uncontended() {
  // A second thread has it, so it is biased to none.
  Check(shmipc_mutex_lock(region, &board->shared_mutex, SHMIPC_FOREVER));
  Check(shmipc_mutex_unlock(region, &board->shared_mutex));
  std::thread([] {
    Check(shmipc_mutex_lock(region, &board->shared_mutex, SHMIPC_FOREVER));
    Check(shmipc_mutex_unlock(region, &board->shared_mutex));
  }).join();
  std::vector<Contender> contenders = {
    {"shmipc mutex",
     [] {
       return TimePairs([] {
         Check(shmipc_mutex_lock(region, &board->mutex, SHMIPC_FOREVER));
         Check(shmipc_mutex_unlock(region, &board->mutex));
       });
     }},
    {"pthread robust mutex",
     [] {
       return TimePairs([] {
         pthread_mutex_lock(&board->robust);
         pthread_mutex_unlock(&board->robust);
       });
     }},
    {"pthread plain mutex, process-shared",
     [] {
       return TimePairs([] {
         pthread_mutex_lock(&board->plain);
         pthread_mutex_unlock(&board->plain);
       });
     }},
    {"owner word, compare-and-swap and store",
     [] {
       return TimePairs([] {
         LockOwnerWord();
         board->owner.store(0, std::memory_order_release);
       });
     }},
    {"owner word, two compare-and-swaps",
     [] {
       return TimePairs([] {
         LockOwnerWord();
         uint32_t expected = 1;
         board->owner.compare_exchange_strong(expected, 0,
                                              std::memory_order_release);
       });
     }},
    {"shmipc mutex that another thread has had",
     [] {
       return TimePairs([] {
         Check(shmipc_mutex_lock(region, &board->shared_mutex, SHMIPC_FOREVER));
         Check(shmipc_mutex_unlock(region, &board->shared_mutex));
       });
     }},
#if HAS_BOOST_INTERPROCESS
    {"Boost.Interprocess mutex",
     [] {
       return TimePairs([] {
         Boost()->lock();
         Boost()->unlock();
       });
     }},
#endif
  };
  Compare("Uncontended lock and unlock", contenders,
          {{0, 1, 0.25}, {0, 2, 1.0}, {5, 1, 0.25}});
  Compare("Uncontended reading, writing",
          {{"shmipc rwlock, read",
            [] {
              return TimePairs([] {
                Check(shmipc_rwlock_read_lock(region, &board->rwlock,
                                              SHMIPC_FOREVER));
                Check(shmipc_rwlock_unlock(region, &board->rwlock));
              });
            }},
           {"shmipc rwlock, write",
            [] {
              return TimePairs([] {
                Check(shmipc_rwlock_write_lock(region, &board->rwlock,
                                               SHMIPC_FOREVER));
                Check(shmipc_rwlock_unlock(region, &board->rwlock));
              });
            }},
           {"pthread rwlock, read",
            [] {
              return TimePairs([] {
                pthread_rwlock_rdlock(&board->pthread_rwlock);
                pthread_rwlock_unlock(&board->pthread_rwlock);
              });
            }},
           {"pthread rwlock, write",
            [] {
              return TimePairs([] {
                pthread_rwlock_wrlock(&board->pthread_rwlock);
                pthread_rwlock_unlock(&board->pthread_rwlock);
              });
            }}},
          {});
  Compare("Uncontended post and wait, notify",
          {{"shmipc semaphore",
            [] {
              return TimePairs([] {
                Check(shmipc_semaphore_post(region, &board->semaphore));
                Check(shmipc_semaphore_wait(region, &board->semaphore,
                                            SHMIPC_FOREVER));
              });
            }},
           {"sem_t",
            [] {
              return TimePairs([] {
                sem_post(&board->sem);
                sem_wait(&board->sem);
              });
            }},
           {"shmipc event, notify with nobody waiting",
            [] {
              return TimePairs([] {
                Check(shmipc_event_notify_one(region, &board->events[0]));
              });
            }}},
          {});
}

// -- Two processes.

double TwoProcesses(int64_t count, const std::function<void(int who)> &work) {
  return benchmarking::TwoProcesses(count, [&](int who) {
    board = static_cast<Board *>(shmipc_region_data(region));
    work(who);
  });
}

template <typename Lock, typename Unlock>
std::function<double()> Contended(const Lock &lock, const Unlock &unlock) {
  return [lock, unlock] {
    return TwoProcesses(2 * flags.contended, [&](int) {
      for (int64_t i = 0; i < flags.contended; i++) {
        lock();
        board->counter = board->counter + 1;
        unlock();
      }
    });
  };
}

void ContendedLocks() {
  std::vector<Contender> contenders = {
    {"shmipc mutex",
     Contended(
         [] {
           Check(shmipc_mutex_lock(region, &board->mutex, SHMIPC_FOREVER));
         },
         [] { Check(shmipc_mutex_unlock(region, &board->mutex)); })},
    {"pthread robust mutex",
     Contended([] { pthread_mutex_lock(&board->robust); },
               [] { pthread_mutex_unlock(&board->robust); })},
    {"pthread plain mutex, process-shared",
     Contended([] { pthread_mutex_lock(&board->plain); },
               [] { pthread_mutex_unlock(&board->plain); })},
#if HAS_BOOST_INTERPROCESS
    {"Boost.Interprocess mutex",
     Contended([] { Boost()->lock(); }, [] { Boost()->unlock(); })},
#endif
  };
  Compare("Two processes that do nothing but lock and unlock, a pair",
          contenders, {});
  Compare("Two processes that read, a pair",
          {{"shmipc rwlock, read",
            Contended(
                [] {
                  Check(shmipc_rwlock_read_lock(region, &board->rwlock,
                                                SHMIPC_FOREVER));
                },
                [] { Check(shmipc_rwlock_unlock(region, &board->rwlock)); })},
           {"pthread rwlock, read",
            Contended([] { pthread_rwlock_rdlock(&board->pthread_rwlock); },
                      [] { pthread_rwlock_unlock(&board->pthread_rwlock); })}},
          {});
}

// Turns that are handed over, each by a sleep and a wake-up.
void HandOffs() {
  auto raw = [](int who) {
    for (int64_t i = 0; i < flags.hand_offs; i++) {
      if (who == 0) {
        board->raw[0] = 1;
        FutexWake(&board->raw[0]);
      }
      std::atomic<uint32_t> *mine = &board->raw[who == 0 ? 1 : 0];
      while (*mine == 0) {
        FutexWait(mine, 0);
      }
      *mine = 0;
      if (who == 1) {
        board->raw[1] = 1;
        FutexWake(&board->raw[1]);
      }
    }
  };
  auto semaphores = [](int who) {
    for (int64_t i = 0; i < flags.hand_offs; i++) {
      if (who == 0) {
        Check(shmipc_semaphore_post(region, &board->turns[0]));
        Check(shmipc_semaphore_wait(region, &board->turns[1], SHMIPC_FOREVER));
      } else {
        Check(shmipc_semaphore_wait(region, &board->turns[0], SHMIPC_FOREVER));
        Check(shmipc_semaphore_post(region, &board->turns[1]));
      }
    }
  };
  auto posix = [](int who) {
    for (int64_t i = 0; i < flags.hand_offs; i++) {
      if (who == 0) {
        sem_post(&board->sem_turns[0]);
        sem_wait(&board->sem_turns[1]);
      } else {
        sem_wait(&board->sem_turns[0]);
        sem_post(&board->sem_turns[1]);
      }
    }
  };
  auto events = [](int who) {
    for (int64_t i = 0; i < flags.hand_offs; i++) {
      uint32_t mine = static_cast<uint32_t>(who);
      for (;;) {
        uint32_t key = shmipc_event_key(&board->events[who]);
        if (board->turn % 2 == mine) {
          break;
        }
        Check(shmipc_event_wait(region, &board->events[who], key,
                                SHMIPC_FOREVER));
      }
      board->turn++;
      Check(shmipc_event_notify_one(region, &board->events[1 - who]));
    }
  };
  auto contender = [](const char *name, const std::function<void(int)> &work) {
    return Contender{name, [work] {
                       return TwoProcesses(flags.hand_offs, work);
                     }};
  };
  Compare("Round trip between two processes that sleep or spin",
          {contender("shmipc semaphore", semaphores),
           contender("shmipc event", events), contender("sem_t", posix),
           contender("bare futex", raw)},
          {{0, 3, 1.1}, {1, 3, 1.1}});
}

// -- The heap.

constexpr size_t kHeapBytes = 64 << 20;
constexpr int kBatch = 1000;

void *volatile sink;

#if HAS_BOOST_INTERPROCESS
using BoostHeap = boost::interprocess::basic_managed_external_buffer<
    char,
    boost::interprocess::rbtree_best_fit<boost::interprocess::mutex_family>,
    boost::interprocess::iset_index>;

// In memory that a child of fork shares.
BoostHeap *boost_heap;

void MakeBoostHeap() {
  void *memory = mmap(nullptr, kHeapBytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) {
    Die("mmap");
  }
  boost_heap =
      new BoostHeap(boost::interprocess::create_only, memory, kHeapBytes);
}
#endif

// One block at a time, or a thousand.
template <typename Alloc, typename Free>
std::function<double()> AllocAndFree(int count, const Alloc &alloc,
                                     const Free &release) {
  return [count, alloc, release] {
    void *blocks[kBatch];
    int64_t rounds = std::max<int64_t>(1, flags.pairs / count);
    double start = NowNs();
    for (int64_t i = 0; i < rounds; i++) {
      for (int j = 0; j < count; j++) {
        blocks[j] = alloc();
        sink = blocks[j];
      }
      for (int j = 0; j < count; j++) {
        release(blocks[j]);
      }
    }
    return (NowNs() - start) / static_cast<double>(rounds * count);
  };
}

// Two processes, each with its own blocks.
std::function<double()> InTwo(const std::function<double()> &run) {
  return [run] {
    double result = 0;
    TwoProcesses(1, [&](int who) {
      double own = run();
      result = who == 0 ? own : 0;
    });
    return result;
  };
}

// One allocates a batch, the other frees it.
template <typename Alloc, typename Free>
std::function<double()> FreedByTheOther(const Alloc &alloc,
                                        const Free &release) {
  return [alloc, release] {
    board->batch = 0;
    return TwoProcesses(flags.batches * kBatch, [&](int who) {
      for (int64_t i = 0; i < flags.batches; i++) {
        uint64_t turn = static_cast<uint64_t>(2 * i + who);
        while (board->batch != turn) {
          // Spins: a batch takes longer than a wake-up would.
        }
        for (uint64_t &offset : board->offsets) {
          if (who == 0) {
            offset = alloc();
          } else {
            release(offset);
          }
        }
        board->batch = turn + 1;
      }
    });
  };
}

void Blocks(size_t size) {
  auto shm_alloc = [size] {
    return shmipc_block_alloc(region, size);
  };
  auto shm_free = [](void *block) {
    if (shmipc_block_free(region, block) != 0) {
      Die("free");
    }
  };
  auto libc_alloc = [size] {
    return malloc(size);
  };
  auto libc_free = [](void *block) {
    free(block);
  };
  std::string title = std::to_string(size) + " bytes, alloc and free, a pair";
  for (int count : {1, kBatch}) {
    std::vector<Contender> contenders = {
        {"shmipc block", AllocAndFree(count, shm_alloc, shm_free)},
        {"malloc, private", AllocAndFree(count, libc_alloc, libc_free)},
        {"shmipc block, two processes",
         InTwo(AllocAndFree(count, shm_alloc, shm_free))},
    };
    std::vector<Bar> bars = {{0, 1, 0.8}, {2, 0, 1.25}};
#if HAS_BOOST_INTERPROCESS
    contenders.push_back(
        {"Boost rbtree_best_fit",
         AllocAndFree(
             count, [size] { return boost_heap->allocate(size); },
             [](void *block) { boost_heap->deallocate(block); })});
    bars.push_back({0, 3, 1.0 / 40});
#endif
    Compare((title + (count == 1 ? "" : ", a thousand at a time")).c_str(),
            contenders, bars);
  }
  std::vector<Contender> contenders = {
      {"shmipc block",
       FreedByTheOther(
           [size] {
             return shmipc_ref_of(region, shmipc_block_alloc(region, size))
                 .offset;
           },
           [&](uint64_t offset) {
             if (shmipc_block_free(
                     region, shmipc_ref_get(region, {offset}, size)) != 0) {
               Die("free of another's");
             }
           })},
  };
  std::vector<Bar> bars;
#if HAS_BOOST_INTERPROCESS
  contenders.push_back(
      {"Boost rbtree_best_fit",
       FreedByTheOther(
           [size] {
             return reinterpret_cast<uint64_t>(boost_heap->allocate(size));
           },
           [](uint64_t block) {
             boost_heap->deallocate(reinterpret_cast<void *>(block));
           })});
  bars.push_back({0, 1, 0.25});
#endif
  Compare((std::to_string(size) + " bytes, freed by the other process").c_str(),
          contenders, bars);
}

int InitialiseBoard(void *, void *data, size_t) {
  auto *all = static_cast<Board *>(data);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init(&all->plain, &attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&all->robust, &attributes);
  pthread_rwlockattr_t rwlock_attributes;
  pthread_rwlockattr_init(&rwlock_attributes);
  pthread_rwlockattr_setpshared(&rwlock_attributes, PTHREAD_PROCESS_SHARED);
  pthread_rwlock_init(&all->pthread_rwlock, &rwlock_attributes);
  sem_init(&all->sem, 1, 0);
  sem_init(&all->sem_turns[0], 1, 0);
  sem_init(&all->sem_turns[1], 1, 0);
#if HAS_BOOST_INTERPROCESS
  new (all->boost) boost::interprocess::interprocess_mutex;
#endif
  return 0;
}

void ReadFlags(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    if (strncmp(argv[i], "--rounds=", 9) == 0) {
      flags.rounds = std::max(1, atoi(argv[i] + 9));
    } else if (strcmp(argv[i], "--heap") == 0) {
      flags.only_heap = true;
    } else if (strcmp(argv[i], "--channels") == 0) {
      flags.only_channels = true;
    } else if (strcmp(argv[i], "--smoke") == 0) {
      flags = {1, 1000, 1000, 100, 2, 100, false, false};
    } else {
      fprintf(stderr,
              "usage: benchmark [--rounds=N] [--heap] [--channels] "
              "[--smoke]\n");
      exit(2);
    }
  }
}

}  // namespace

int main(int argc, char **argv) {
  ReadFlags(argc, argv);
  shmipc_region_options_t options = {};
  options.backend = SHMIPC_MEMFD;
  options.size_bytes = sizeof(Board);
  options.heap_bytes = kHeapBytes;
  options.initialize = InitialiseBoard;
  Check(shmipc_region_create(nullptr, &options, &region));
  board = static_cast<Board *>(shmipc_region_data(region));
  share_fd = shmipc_region_share_fd(region);
  Check(share_fd);
  if (!HAS_BOOST_INTERPROCESS) {
    printf("without Boost.Interprocess: libboost-dev is not installed\n");
  }
  if (!flags.only_heap && !flags.only_channels) {
    Uncontended();
    ContendedLocks();
    HandOffs();
  }
  if (!flags.only_channels) {
#if HAS_BOOST_INTERPROCESS
    MakeBoostHeap();
#endif
    Blocks(64);
    Blocks(1024);
  }
  if (!flags.only_heap) {
    benchmarking::Channels();
  }
  shmipc_region_close(region);
  return 0;
}
