// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A pass is a loop (in order, or a thread's share) around calls of one of three
// kinds: plain, timed one by one, or accounted for. Loops must not allocate:
// malloc may be what is replayed.
//
// Threads: a slot is written by the thread that makes the block, with release,
// and read, with acquire, by that which needs it. No slot is used twice then,
// and each operation needs only what earlier ones of the log made: the earliest
// one that is not done can always be done, so all get done.

#include "leakcheck/replay_pass.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

namespace leakcheck {

namespace {

constexpr size_t kPageBytes = 4096;

uint64_t Now(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(time.tv_nsec);
}

// Slots of one thread.
class OwnSlots {
 public:
  explicit OwnSlots(void **slots) : slots_(slots) {
  }
  void *Take(uint32_t slot) const {
    return slots_[slot];
  }
  void Put(uint32_t slot, void *ptr) const {
    slots_[slot] = ptr;
  }
  uint64_t waited_ns() const {
    return 0;
  }

 private:
  void **const slots_;
};

// What is in a slot whose block was refused, so that nobody waits for it.
unsigned char refused_block;

// Slots of several threads.
class SharedSlots {
 public:
  explicit SharedSlots(void **slots) : slots_(slots) {
  }
  void *Take(uint32_t slot) {
    // Acquire: what Put() released.
    void *ptr = __atomic_load_n(&slots_[slot], __ATOMIC_ACQUIRE);
    if (ptr == nullptr) {
      ptr = Wait(slot);
    }
    return ptr == &refused_block ? nullptr : ptr;
  }
  void Put(uint32_t slot, void *ptr) const {
    __atomic_store_n(&slots_[slot], ptr == nullptr ? &refused_block : ptr,
                     __ATOMIC_RELEASE);
  }
  // CPU time, which is not the allocator's.
  uint64_t waited_ns() const {
    return waited_ns_;
  }

 private:
  void *Wait(uint32_t slot) {
    const uint64_t start_ns = Now(CLOCK_THREAD_CPUTIME_ID);
    void *ptr;
    do {
      sched_yield();
      ptr = __atomic_load_n(&slots_[slot], __ATOMIC_ACQUIRE);
    } while (ptr == nullptr);
    waited_ns_ += Now(CLOCK_THREAD_CPUTIME_ID) - start_ns;
    return ptr;
  }

  void **const slots_;
  uint64_t waited_ns_ = 0;
};

void Write(void *ptr, size_t offset) {
  static_cast<volatile unsigned char *>(ptr)[offset] = 1;
}

// Calls, and nothing else.
class PlainCalls {
 public:
  explicit PlainCalls(ReplayAllocator *allocator) : allocator_(allocator) {
  }
  void *Alloc(const ReplayOperation &operation, size_t index) {
    (void)index;
    void *ptr = allocator_->Alloc(operation.size_bytes);
    if (ptr == nullptr) {
      ++refused_count_;
    } else if (operation.size_bytes != 0) {
      Write(ptr, 0);
    }
    return ptr;
  }
  void *Resize(const ReplayOperation &operation, size_t index, void *ptr) {
    (void)index;
    void *resized = allocator_->Resize(ptr, operation.size_bytes);
    refused_count_ += resized == nullptr;
    return resized;
  }
  void Free(const ReplayOperation &operation, size_t index, void *ptr) {
    (void)operation;
    (void)index;
    allocator_->Free(ptr);
  }
  void Done(size_t index) {
    (void)index;
  }
  uint64_t refused_count() const {
    return refused_count_;
  }

 private:
  ReplayAllocator *const allocator_;
  uint64_t refused_count_ = 0;
};

// Calls with a look at the clock before and after each.
class TimedCalls {
 public:
  TimedCalls(ReplayAllocator *allocator, uint32_t *call_ns)
      : allocator_(allocator), call_ns_(call_ns) {
  }
  void *Alloc(const ReplayOperation &operation, size_t index) {
    const uint64_t start_ns = Now(CLOCK_MONOTONIC);
    void *ptr = allocator_->Alloc(operation.size_bytes);
    Note(index, start_ns);
    if (ptr != nullptr && operation.size_bytes != 0) {
      Write(ptr, 0);
    }
    return ptr;
  }
  void *Resize(const ReplayOperation &operation, size_t index, void *ptr) {
    const uint64_t start_ns = Now(CLOCK_MONOTONIC);
    void *resized = allocator_->Resize(ptr, operation.size_bytes);
    Note(index, start_ns);
    return resized;
  }
  void Free(const ReplayOperation &operation, size_t index, void *ptr) {
    (void)operation;
    const uint64_t start_ns = Now(CLOCK_MONOTONIC);
    allocator_->Free(ptr);
    Note(index, start_ns);
  }
  void Done(size_t index) {
    (void)index;
  }
  uint64_t refused_count() const {
    return 0;
  }

 private:
  void Note(size_t index, uint64_t start_ns) {
    const uint64_t ns = Now(CLOCK_MONOTONIC) - start_ns;
    call_ns_[index] =
        static_cast<uint32_t>(std::min<uint64_t>(ns, call_ns_[index]));
  }

  ReplayAllocator *const allocator_;
  uint32_t *const call_ns_;
};

// What the accounted calls of all threads share.
struct Account {
  ReplayAllocator *allocator;
  const ReplayProgram *program;
  uint64_t *sizes;
  const size_t *sample_at;
  size_t sample_count;
  uint64_t idle_bytes;
  ReplaySample *samples;
  std::atomic<uint64_t> requested_bytes{0};
  std::atomic<uint64_t> usable_bytes{0};
};

// Calls with an account of what is live. A sum may be behind by what other
// threads are just doing.
class AccountedCalls {
 public:
  explicit AccountedCalls(Account *account) : account_(account) {
  }
  void *Alloc(const ReplayOperation &operation, size_t index) {
    (void)index;
    void *ptr = account_->allocator->Alloc(operation.size_bytes);
    if (ptr != nullptr) {
      Add(operation, ptr);
    }
    return ptr;
  }
  void *Resize(const ReplayOperation &operation, size_t index, void *ptr) {
    (void)index;
    const size_t usable = account_->allocator->UsableBytes(ptr);
    const uint64_t requested = account_->sizes[operation.slot];
    void *resized = account_->allocator->Resize(ptr, operation.size_bytes);
    if (resized == nullptr) {
      account_->sizes[operation.to_slot] = requested;
      return nullptr;
    }
    account_->usable_bytes -= usable;
    account_->requested_bytes -= requested;
    Add(operation, resized);
    return resized;
  }
  void Free(const ReplayOperation &operation, size_t index, void *ptr) {
    (void)index;
    account_->usable_bytes -= account_->allocator->UsableBytes(ptr);
    account_->requested_bytes -= account_->sizes[operation.slot];
    account_->allocator->Free(ptr);
  }
  void Done(size_t index) {
    const size_t *end = account_->sample_at + account_->sample_count;
    const size_t *found = std::lower_bound(account_->sample_at, end, index);
    if (found == end || *found != index) {
      return;
    }
    ReplaySample &sample = account_->samples[found - account_->sample_at];
    sample.operation = index + 1;
    sample.time_ns = account_->program->times_ns[index];
    sample.requested_bytes = account_->requested_bytes;
    sample.usable_bytes = account_->usable_bytes;
    const uint64_t resident = ReplayResidentBytes();
    sample.resident_bytes =
        resident > account_->idle_bytes ? resident - account_->idle_bytes : 0;
    sample.has_pieces = account_->allocator->GetPieces(&sample.pieces);
  }
  uint64_t refused_count() const {
    return 0;
  }

 private:
  void Add(const ReplayOperation &operation, void *ptr) {
    account_->sizes[operation.to_slot] = operation.size_bytes;
    account_->requested_bytes += operation.size_bytes;
    account_->usable_bytes += account_->allocator->UsableBytes(ptr);
    for (size_t i = 0; i < operation.size_bytes; i += kPageBytes) {
      Write(ptr, i);
    }
    if (operation.size_bytes != 0) {
      Write(ptr, operation.size_bytes - 1);
    }
  }

  Account *const account_;
};

template <typename Slots, typename Calls>
inline void Step(const ReplayOperation &operation, size_t index, Slots *slots,
                 Calls *calls) {
  if (operation.kind == kReplayAlloc) {
    slots->Put(operation.to_slot, calls->Alloc(operation, index));
  } else if (void *ptr = slots->Take(operation.slot);
             operation.kind == kReplayFree) {
    if (ptr != nullptr) {
      calls->Free(operation, index, ptr);
    }
  } else {
    void *resized =
        ptr == nullptr ? nullptr : calls->Resize(operation, index, ptr);
    // Refused: it is where it was.
    slots->Put(operation.to_slot, resized == nullptr ? ptr : resized);
  }
  calls->Done(index);
}

}  // namespace

ReplayPass::ReplayPass(const ReplayProgram &program, bool is_concurrent)
    : program_(program),
      is_concurrent_(is_concurrent),
      slots_(program.slot_count),
      sizes_(program.slot_count) {
  if (!is_concurrent) {
    return;
  }
  thread_ends_.resize(program.thread_count + 1);
  for (const ReplayOperation &operation : program.operations) {
    ++thread_ends_[operation.thread + 1];
  }
  for (size_t i = 1; i < thread_ends_.size(); ++i) {
    thread_ends_[i] += thread_ends_[i - 1];
  }
  thread_operations_.resize(program.operations.size());
  // Each thread's end becomes that of the one before, and comes back.
  for (size_t i = 0; i < program.operations.size(); ++i) {
    thread_operations_[thread_ends_[program.operations[i].thread]++] = i;
  }
}

template <typename Calls>
ReplayTimes ReplayPass::RunInOrder(const Calls &given) {
  Calls calls = given;
  OwnSlots slots(slots_.data());
  const ReplayOperation *operations = program_.operations.data();
  const size_t count = program_.operations.size();
  const uint64_t wall_ns = Now(CLOCK_MONOTONIC);
  const uint64_t cpu_ns = Now(CLOCK_THREAD_CPUTIME_ID);
  for (size_t i = 0; i < count; ++i) {
    Step(operations[i], i, &slots, &calls);
  }
  ReplayTimes times;
  times.cpu_ns = Now(CLOCK_THREAD_CPUTIME_ID) - cpu_ns;
  times.wall_ns = Now(CLOCK_MONOTONIC) - wall_ns;
  times.refused_count = calls.refused_count();
  return times;
}

template <typename Calls>
ReplayTimes ReplayPass::RunThreads(const Calls &given) {
  const size_t thread_count = program_.thread_count;
  std::vector<ReplayTimes> times(thread_count);
  std::vector<std::thread> threads;
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr,
                       static_cast<unsigned>(thread_count) + 1);
  threads.reserve(thread_count);
  for (size_t t = 0; t < thread_count; ++t) {
    threads.emplace_back([this, t, &given, &times, &barrier] {
      Calls calls = given;
      SharedSlots slots(slots_.data());
      // After the constructor's loop an end is at its own index.
      const size_t first = t == 0 ? 0 : thread_ends_[t - 1];
      pthread_barrier_wait(&barrier);
      const uint64_t cpu_ns = Now(CLOCK_THREAD_CPUTIME_ID);
      for (size_t i = first; i < thread_ends_[t]; ++i) {
        const size_t index = thread_operations_[i];
        Step(program_.operations[index], index, &slots, &calls);
      }
      times[t].cpu_ns =
          Now(CLOCK_THREAD_CPUTIME_ID) - cpu_ns - slots.waited_ns();
      times[t].refused_count = calls.refused_count();
    });
  }
  pthread_barrier_wait(&barrier);
  ReplayTimes sum;
  const uint64_t wall_ns = Now(CLOCK_MONOTONIC);
  for (std::thread &thread : threads) {
    thread.join();
  }
  sum.wall_ns = Now(CLOCK_MONOTONIC) - wall_ns;
  pthread_barrier_destroy(&barrier);
  for (const ReplayTimes &one : times) {
    sum.cpu_ns += one.cpu_ns;
    sum.refused_count += one.refused_count;
  }
  return sum;
}

template <typename Calls>
ReplayTimes ReplayPass::Run(const Calls &calls) {
  return is_concurrent_ ? RunThreads(calls) : RunInOrder(calls);
}

void ReplayPass::FreeAll(ReplayAllocator *allocator) {
  if (!allocator->Reset()) {
    for (uint32_t slot : program_.leftovers) {
      allocator->Free(slots_[slot] == &refused_block ? nullptr : slots_[slot]);
    }
  }
  std::fill(slots_.begin(), slots_.end(), nullptr);
}

ReplayTimes ReplayPass::Time(ReplayAllocator *allocator) {
  const ReplayTimes times = Run(PlainCalls(allocator));
  FreeAll(allocator);
  return times;
}

void ReplayPass::TimeCalls(ReplayAllocator *allocator, uint32_t *call_ns) {
  Run(TimedCalls(allocator, call_ns));
  FreeAll(allocator);
}

void ReplayPass::Sample(ReplayAllocator *allocator, const size_t *sample_at,
                        size_t sample_count, uint64_t idle_bytes,
                        ReplaySample *out_samples) {
  Account account;
  account.allocator = allocator;
  account.program = &program_;
  account.sizes = sizes_.data();
  account.sample_at = sample_at;
  account.sample_count = sample_count;
  account.idle_bytes = idle_bytes;
  account.samples = out_samples;
  Run(AccountedCalls(&account));
  FreeAll(allocator);
}

uint64_t ReplayResidentBytes() {
  char text[4096];
  const int file = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
  const ssize_t length = file < 0 ? 0 : read(file, text, sizeof(text) - 1);
  if (file >= 0) {
    close(file);
  }
  text[std::max<ssize_t>(length, 0)] = '\0';
  const char *field = strstr(text, "\nAnonymous:");
  return field == nullptr
             ? 0
             : strtoull(field + strlen("\nAnonymous:"), nullptr, 10) * 1024;
}

}  // namespace leakcheck
