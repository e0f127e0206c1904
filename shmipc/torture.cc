// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Kills processes at random while they allocate, free and lock in shared
// memory, and counts what that does to the others: shmipc beside
// Boost.Interprocess, the same loops and the same killer.
//
//   bazel run //shmipc:torture -- --kills=500
//
// Two workers loop; one is killed after 0 to 2 ms and replaced. The survivor
// must go on within --hang_ms, or it counts as hung, and both start anew in new
// memory. A block is filled with a number of its own, which must still be there
// when it is freed.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <boost/interprocess/managed_shared_memory.hpp>
#include <boost/interprocess/sync/interprocess_mutex.hpp>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "shmipc/block.h"
#include "shmipc/mutex.h"
#include "shmipc/region.h"
#include "shmipc/shared_heap.h"

ABSL_FLAG(int, kills, 200, "kills for each contender and operation");
ABSL_FLAG(int, hang_ms, 200, "no progress for so long is a hang");
ABSL_FLAG(uint64_t, seed, 1, "of the killer and the workers");

namespace {

namespace ipc = boost::interprocess;

constexpr int kWorkers = 2;
constexpr int kKept = 16;
constexpr size_t kHeapBytes = 64 << 20;
constexpr size_t kSizeMax = 4096;

int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

// In memory of its own, which outlives the contenders'.
struct Board {
  uint64_t turns[kWorkers];  // Atomic.
  uint64_t num_double;       // Atomic. Blocks or locks that two had at once.
  uint64_t num_errors;       // Atomic. Calls that failed and should not have.
  uint64_t inside;           // Atomic. Who has the lock; 0: nobody.
};

void Count(uint64_t *counter) {
  __atomic_fetch_add(counter, 1u, __ATOMIC_RELAXED);
}

// Memory and a lock, of one library. Made in the parent; a worker attaches.
class Contender {
 public:
  virtual ~Contender() = default;
  virtual void Create() = 0;
  virtual void Remove() = 0;
  virtual bool Attach() = 0;
  virtual void *Alloc(size_t size_bytes) = 0;
  virtual bool Free(void *block) = 0;
  virtual bool Lock() = 0;
  virtual bool Unlock() = 0;
  // Bytes that nobody alive has and nobody can have; both workers are dead.
  virtual size_t LostBytes() = 0;
};

class Shmipc : public Contender {
 public:
  void Create() override {
    Remove();
    shmipc_region_options_t options = {};
    options.size_bytes = sizeof(shmipc_mutex_t);
    options.heap_bytes = kHeapBytes;
    if (shmipc_region_create(kName, &options, &region_) < 0) {
      std::perror("shmipc_region_create");
      std::exit(1);
    }
  }
  void Remove() override {
    shmipc_region_close(region_);
    region_ = nullptr;
    int status = shmipc_region_unlink(kName, SHMIPC_POSIX);
    if (status < 0 && status != -ENOENT) {
      std::fprintf(stderr, "%s: %s\n", kName, shmipc_strerror(status));
      std::exit(1);
    }
  }
  bool Attach() override {
    shmipc_region_close(region_);
    region_ = nullptr;
    if (shmipc_region_open(kName, nullptr, &region_) < 0) {
      return false;
    }
    mutex_ = static_cast<shmipc_mutex_t *>(shmipc_region_data(region_));
    return shmipc_heap_reclaim(region_, 0) >= 0;
  }
  void *Alloc(size_t size_bytes) override {
    return shmipc_block_alloc(region_, size_bytes);
  }
  bool Free(void *block) override {
    return shmipc_block_free(region_, block) == 0;
  }
  bool Lock() override {
    int status = shmipc_mutex_lock(region_, mutex_, SHMIPC_FOREVER);
    if (status == -EOWNERDEAD) {
      status = shmipc_mutex_consistent(region_, mutex_);
    }
    return status == 0;
  }
  bool Unlock() override {
    return shmipc_mutex_unlock(region_, mutex_) == 0;
  }
  size_t LostBytes() override {
    shmipc_heap_stats_t stats;
    if (shmipc_heap_reclaim(region_, 0) < 0 || shmipc_heap_trim(region_) < 0 ||
        shmipc_heap_stats_get(region_, &stats) < 0) {
      return kHeapBytes;
    }
    return stats.heap_bytes - stats.free_page_bytes;
  }

 private:
  static constexpr const char *kName = "/shmipc_torture";
  shmipc_region_t *region_ = nullptr;
  shmipc_mutex_t *mutex_ = nullptr;
};

class Boost : public Contender {
 public:
  void Create() override {
    Remove();
    memory_ = std::make_unique<ipc::managed_shared_memory>(ipc::create_only,
                                                           kName, kHeapBytes);
    memory_->construct<ipc::interprocess_mutex>("mutex")();
    // What a name's look-up needs is there before the count.
    free_bytes_ = memory_->get_free_memory();
  }
  void Remove() override {
    memory_.reset();
    ipc::shared_memory_object::remove(kName);
  }
  bool Attach() override {
    // Opening takes the allocator's lock, which may be a dead process's.
    memory_ =
        std::make_unique<ipc::managed_shared_memory>(ipc::open_only, kName);
    mutex_ = memory_->find<ipc::interprocess_mutex>("mutex").first;
    return mutex_ != nullptr;
  }
  void *Alloc(size_t size_bytes) override {
    return memory_->allocate(size_bytes, std::nothrow);
  }
  bool Free(void *block) override {
    memory_->deallocate(block);
    return true;
  }
  bool Lock() override {
    mutex_->lock();
    return true;
  }
  bool Unlock() override {
    mutex_->unlock();
    return true;
  }
  size_t LostBytes() override {
    return free_bytes_ - memory_->get_free_memory();
  }

 private:
  static constexpr const char *kName = "boost_torture";
  std::unique_ptr<ipc::managed_shared_memory> memory_;
  ipc::interprocess_mutex *mutex_ = nullptr;
  size_t free_bytes_ = 0;
};

// Allocates and frees for ever.
void LoopBlocks(Contender *contender, Board *board, int worker, uint64_t seed) {
  struct Kept {
    uint64_t *block;
    size_t num_words;
    uint64_t stamp;
  };
  std::vector<Kept> kept;
  std::mt19937_64 random(seed);
  for (uint64_t turn = 1;; turn++) {
    size_t size = 8 + random() % (kSizeMax - 8);
    auto *block = static_cast<uint64_t *>(contender->Alloc(size));
    if (block == nullptr) {
      Count(&board->num_errors);
    } else {
      uint64_t stamp = seed + (turn << 1);
      std::fill_n(block, size / 8, stamp);
      kept.push_back({block, size / 8, stamp});
    }
    if (kept.size() == kKept || (block == nullptr && !kept.empty())) {
      size_t victim = random() % kept.size();
      Kept gone = kept[victim];
      kept[victim] = kept.back();
      kept.pop_back();
      if (std::any_of(gone.block, gone.block + gone.num_words,
                      [&](uint64_t word) { return word != gone.stamp; })) {
        Count(&board->num_double);
      }
      if (!contender->Free(gone.block)) {
        Count(&board->num_errors);
      }
    }
    Count(&board->turns[worker]);
  }
}

// Locks and unlocks for ever.
void LoopLock(Contender *contender, Board *board, int worker, uint64_t) {
  uint64_t self = static_cast<uint64_t>(getpid());
  for (;;) {
    if (!contender->Lock()) {
      Count(&board->num_errors);
      continue;
    }
    // A dead owner's pid may be there, a living one's not.
    uint64_t before =
        __atomic_exchange_n(&board->inside, self, __ATOMIC_SEQ_CST);
    if (before != 0 && before != self &&
        kill(static_cast<pid_t>(before), 0) == 0) {
      Count(&board->num_double);
    }
    if (__atomic_exchange_n(&board->inside, 0u, __ATOMIC_SEQ_CST) != self) {
      Count(&board->num_double);
    }
    if (!contender->Unlock()) {
      Count(&board->num_errors);
    }
    Count(&board->turns[worker]);
  }
}

using Loop = void (*)(Contender *, Board *, int, uint64_t);

struct Result {
  int num_kills = 0;
  int num_hangs = 0;
  int num_crashes = 0;
  size_t lost_bytes = 0;
  int64_t worst_stall_ns = 0;
};

class Torture {
 public:
  Torture(Contender *contender, Loop loop)
      : contender_(contender), loop_(loop), random_(absl::GetFlag(FLAGS_seed)) {
    board_ = static_cast<Board *>(mmap(nullptr, sizeof(Board),
                                       PROT_READ | PROT_WRITE,
                                       MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    if (board_ == MAP_FAILED) {
      std::perror("mmap");
      std::exit(1);
    }
  }
  ~Torture() {
    munmap(board_, sizeof(Board));
  }

  // Prints a line; false if anything was harmed.
  bool Run(const char *library, const char *operation) {
    Begin();
    while (result_.num_kills < absl::GetFlag(FLAGS_kills)) {
      // A microsecond to two milliseconds.
      timespec pause = {0, static_cast<long>(1000 + random_() % 2000000)};
      nanosleep(&pause, nullptr);
      int victim = static_cast<int>(random_() % kWorkers);
      Kill(victim);
      ++result_.num_kills;
      bool has_hung = !Progresses(1 - victim);
      if (!has_hung) {
        Start(victim);
        has_hung = !Progresses(victim);
      }
      if (has_hung) {
        ++result_.num_hangs;
        End();
        Begin();
      }
    }
    for (int i = 0; i < kWorkers; i++) {
      Kill(i);
    }
    result_.lost_bytes = contender_->LostBytes();
    contender_->Remove();
    std::printf(
        "%-8s %-12s %6d %6d %8d %13llu %7llu %11zu %9.1f\n", library, operation,
        result_.num_kills, result_.num_hangs, result_.num_crashes,
        static_cast<unsigned long long>(board_->num_double),
        static_cast<unsigned long long>(board_->num_errors), result_.lost_bytes,
        static_cast<double>(result_.worst_stall_ns) / 1e6);
    std::fflush(stdout);
    return result_.num_hangs + result_.num_crashes == 0 &&
           board_->num_double + board_->num_errors + result_.lost_bytes == 0;
  }

 private:
  void Begin() {
    contender_->Create();
    board_->inside = 0;
    for (int i = 0; i < kWorkers; i++) {
      Start(i);
    }
  }
  void End() {
    for (int i = 0; i < kWorkers; i++) {
      Kill(i);
    }
    contender_->Remove();
  }

  void Start(int worker) {
    uint64_t seed = random_();
    pids_[worker] = fork();
    if (pids_[worker] == 0) {
      if (contender_->Attach()) {
        loop_(contender_, board_, worker, seed);
      }
      _exit(1);
    }
    if (pids_[worker] < 0) {
      std::perror("fork");
      std::exit(1);
    }
  }

  // One that ended before it was killed crashed.
  void Kill(int worker) {
    if (pids_[worker] <= 0) {
      return;
    }
    kill(pids_[worker], SIGKILL);
    int status = 0;
    waitpid(pids_[worker], &status, 0);
    pids_[worker] = 0;
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
      ++result_.num_crashes;
    }
  }

  // Waits for the next turn of a worker.
  bool Progresses(int worker) {
    int64_t begin = NowNs();
    int64_t limit_ns = absl::GetFlag(FLAGS_hang_ms) * INT64_C(1000000);
    uint64_t before = __atomic_load_n(&board_->turns[worker], __ATOMIC_RELAXED);
    while (__atomic_load_n(&board_->turns[worker], __ATOMIC_RELAXED) ==
           before) {
      if (NowNs() - begin > limit_ns) {
        return false;
      }
      timespec pause = {0, 20000};
      nanosleep(&pause, nullptr);
    }
    result_.worst_stall_ns = std::max(result_.worst_stall_ns, NowNs() - begin);
    return true;
  }

  Contender *contender_;
  Loop loop_;
  std::mt19937_64 random_;
  Board *board_;
  pid_t pids_[kWorkers] = {};
  Result result_;
};

}  // namespace

int main(int argc, char **argv) {
  absl::SetProgramUsageMessage(
      "kills processes that use shared memory, and counts the damage");
  absl::ParseCommandLine(argc, argv);
  std::printf("%-8s %-12s %6s %6s %8s %13s %7s %11s %9s\n", "", "", "kills",
              "hangs", "crashes", "double-owned", "errors", "lost bytes",
              "stall ms");
  Shmipc shmipc;
  Boost boost;
  bool is_whole = Torture(&shmipc, LoopBlocks).Run("shmipc", "alloc, free");
  (void)Torture(&boost, LoopBlocks).Run("Boost", "alloc, free");
  is_whole &= Torture(&shmipc, LoopLock).Run("shmipc", "lock");
  (void)Torture(&boost, LoopLock).Run("Boost", "lock");
  return is_whole ? 0 : 1;
}
