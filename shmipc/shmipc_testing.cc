// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "shmipc/shmipc_testing.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>

namespace shmipc_testing {

uint64_t Count(const char *variable, uint64_t otherwise) {
  const char *text = getenv(variable);
  return text != nullptr ? strtoull(text, nullptr, 10) : otherwise;
}

uint64_t Seed() {
  static const uint64_t seed = [] {
    uint64_t value = Count("SHMIPC_TEST_SEED", std::random_device()());
    printf("SHMIPC_TEST_SEED=%" PRIu64 "\n", value);
    fflush(stdout);
    return value;
  }();
  return seed;
}

std::string Name(const char *what) {
  // Tests have pid namespaces of their own, but one /dev/shm.
  static const std::string *prefix = new std::string(
      "/shmipc_test." + std::to_string(std::random_device()()) + ".");
  static int counter;
  return *prefix + std::to_string(counter++) + "." + what;
}

Watchdog::Watchdog(unsigned int seconds) {
  alarm(seconds);
}

Watchdog::~Watchdog() {
  alarm(0);
}

void ReadArguments(va_list list, long (*out_a)[6]) {
  for (long &one : *out_a) {
    one = va_arg(list, long);
  }
}

long RawCall(long number, const long (&a)[6]) {
  // First: a sanitizer's call for a load would lose what is in a register.
  const long a0 = a[0];
  const long a1 = a[1];
  const long a2 = a[2];
  const long a3 = a[3];
  const long a4 = a[4];
  const long a5 = a[5];
  long result;
#if defined(__x86_64__)
  register long r10 __asm__("r10") = a3;
  register long r8 __asm__("r8") = a4;
  register long r9 __asm__("r9") = a5;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a0), "S"(a1), "d"(a2), "r"(r10), "r"(r8),
                     "r"(r9)
                   : "rcx", "r11", "memory");
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a0;
  register long x1 __asm__("x1") = a1;
  register long x2 __asm__("x2") = a2;
  register long x3 __asm__("x3") = a3;
  register long x4 __asm__("x4") = a4;
  register long x5 __asm__("x5") = a5;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  result = x0;
#else
#error "not ported"
#endif
  if (result < 0 && result >= -4095) {
    errno = static_cast<int>(-result);
    return -1;
  }
  return result;
}

int64_t NowNs() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

Process::Process(const std::function<int()> &work) {
  pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) {
    perror("fork");
    abort();
  }
  if (pid_ == 0) {
    // Alarms are not inherited, and a test that dies leaves nobody behind.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // It died before that; 0 is a parent in another pid namespace.
    if (getppid() != parent && getppid() != 0) {
      _exit(1);
    }
    _exit(work());
  }
}

Process::Process(Process &&other) noexcept : pid_(other.pid_) {
  other.pid_ = -1;
}

Process &Process::operator=(Process &&other) noexcept {
  std::swap(pid_, other.pid_);
  return *this;
}

Process::~Process() {
  if (pid_ > 0) {
    Kill();
  }
}

void Process::Signal(int signal) {
  if (pid_ > 0) {
    kill(pid_, signal);
  }
}

int Process::Wait() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0) {
    if (errno != EINTR) {
      return -1000;
    }
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int Process::Kill() {
  Signal(SIGKILL);
  return Wait();
}

int64_t WorstGapNs(int count, uint64_t num_kills, int64_t most_pause_ns) {
  struct Gap {
    std::atomic<int64_t> worst;
    std::atomic<uint32_t> is_over;
  };
  Shared<Gap> gap;
  auto look = [&] {
    int64_t before = NowNs();
    while (gap->is_over == 0) {
      int64_t now = NowNs();
      int64_t seen = gap->worst;
      while (seen < now - before &&
             !gap->worst.compare_exchange_weak(seen, now - before)) {
      }
      before = now;
    }
    return 0;
  };
  std::mt19937_64 random(Seed());
  std::vector<Process> all;
  for (int i = 0; i < count; i++) {
    all.emplace_back(look);
  }
  for (uint64_t i = 0; i < num_kills; i++) {
    auto ns =
        static_cast<long>(random() % static_cast<uint64_t>(most_pause_ns));
    struct timespec pause = {0, ns};
    nanosleep(&pause, nullptr);
    size_t victim = random() % all.size();
    all[victim].Kill();
    all[victim] = Process(look);
  }
  gap->is_over = 1;
  for (Process &one : all) {
    one.Wait();
  }
  return gap->worst;
}

void *SharedMemory(size_t bytes) {
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    perror("mmap");
    abort();
  }
  return memory;
}

void FreeSharedMemory(void *memory, size_t bytes) {
  munmap(memory, bytes);
}

const char *NameOf(shmipc_backend_t backend) {
  switch (backend) {
    case SHMIPC_POSIX:
      return "posix";
    case SHMIPC_SYSV:
      return "sysv";
    default:
      return "memfd";
  }
}

uint64_t NumKills(shmipc_backend_t backend, uint64_t otherwise) {
  return Count("SHMIPC_KILLS",
               backend == SHMIPC_MEMFD ? otherwise : otherwise / 3);
}

const std::vector<shmipc_backend_t> &Backends() {
  static const std::vector<shmipc_backend_t> *all =
      new std::vector<shmipc_backend_t>{SHMIPC_POSIX, SHMIPC_SYSV,
                                        SHMIPC_MEMFD};
  return *all;
}

TestRegion::TestRegion(
    shmipc_backend_t backend, size_t size_bytes,
    const std::function<void(shmipc_region_options_t *)> &change)
    : name_(Name(NameOf(backend))) {
  options_.backend = backend;
  options_.size_bytes = size_bytes;
  if (change) {
    change(&options_);
  }
  bool has_name = backend != SHMIPC_MEMFD;
  int status = shmipc_region_create(has_name ? name_.c_str() : nullptr,
                                    &options_, &region_);
  if (status == 0 && !has_name) {
    fd_ = shmipc_region_share_fd(region_);
    status = fd_ < 0 ? fd_ : 0;
  }
  if (status < 0) {
    fprintf(stderr, "%s region: %s\n", NameOf(backend),
            shmipc_strerror(status));
    abort();
  }
}

TestRegion::~TestRegion() {
  if (fd_ >= 0) {
    close(fd_);
  } else {
    (void)!shmipc_region_unlink(name_.c_str(), options_.backend);
  }
  shmipc_region_close(region_);
}

void TestRegion::CloseOwn() {
  shmipc_region_close(region_);
  region_ = nullptr;
}

shmipc_region_t *TestRegion::Attach(int *out_status) const {
  shmipc_region_t *region = nullptr;
  int status = fd_ >= 0 ? shmipc_region_open_fd(fd_, &options_, &region)
                        : shmipc_region_open(name_.c_str(), &options_, &region);
  if (out_status != nullptr) {
    *out_status = status;
  } else if (status < 0) {
    fprintf(stderr, "attach: %s\n", shmipc_strerror(status));
  }
  return region;
}

shmipc_region_t *TestRegion::AttachInChild() {
  CloseOwn();
  region_ = Attach();
  return region_;
}

Outcome StepAndKill(uint64_t steps, const std::function<void()> &work) {
  pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) {
      _exit(77);
    }
    work();
    raise(SIGSTOP);
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  // It may have had children: SIGCHLD stops it, too.
  while (WIFSTOPPED(status) && WSTOPSIG(status) != SIGSTOP) {
    ptrace(PTRACE_CONT, child, nullptr, nullptr);
    waitpid(child, &status, 0);
  }
  if (!WIFSTOPPED(status)) {
    return Outcome::kNotPermitted;
  }
  Outcome outcome = Outcome::kKilled;
  for (uint64_t i = 0; i < steps; i++) {
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0 ||
        waitpid(child, &status, 0) != child || !WIFSTOPPED(status) ||
        WSTOPSIG(status) == SIGSTOP) {
      outcome = Outcome::kCameThrough;
      break;
    }
  }
  kill(child, SIGKILL);
  while (waitpid(child, &status, 0) == child && !WIFEXITED(status) &&
         !WIFSIGNALED(status)) {
  }
  return outcome;
}

Stepped::Stepped(const std::function<void()> &work)
    : child_([&]() -> int {
        if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) {
          return 2;
        }
        work();
        return 0;
      }) {
  is_stopped_ = Wait(SIGSTOP);
}

// It may have had children: SIGCHLD stops it, too.
bool Stepped::Wait(int signal) {
  int status = 0;
  while (waitpid(child_.pid(), &status, 0) == child_.pid() &&
         WIFSTOPPED(status)) {
    if (WSTOPSIG(status) == signal) {
      return true;
    }
    if (WSTOPSIG(status) == SIGSTOP) {
      return false;
    }
    (void)ptrace(signal == SIGTRAP ? PTRACE_SINGLESTEP : PTRACE_CONT,
                 child_.pid(), nullptr, nullptr);
  }
  return false;
}

bool Stepped::StepUntil(const std::function<bool()> &condition) {
  while (is_stopped_ && !condition()) {
    num_steps_++;
    if (ptrace(PTRACE_SINGLESTEP, child_.pid(), nullptr, nullptr) != 0) {
      return false;
    }
    is_stopped_ = Wait(SIGTRAP);
  }
  return is_stopped_;
}

bool Stepped::Step(uint64_t count) {
  uint64_t end = num_steps_ + count;
  return StepUntil([&] { return num_steps_ == end; });
}

void Stepped::GoOn() {
  if (is_stopped_) {
    (void)ptrace(PTRACE_CONT, child_.pid(), nullptr, nullptr);
    is_stopped_ = Wait(SIGSTOP);
  }
}

std::string Problems(shmipc_region_t *region) {
  std::string text;
  int count = shmipc_region_verify(
      region,
      [](void *context, const char *what, uint64_t offset, uint64_t value) {
        *static_cast<std::string *>(context) += std::string(what) + " at " +
                                                std::to_string(offset) + ": " +
                                                std::to_string(value) + "\n";
      },
      &text);
  return count < 0 ? shmipc_strerror(count) : text;
}

}  // namespace shmipc_testing
