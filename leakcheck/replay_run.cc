// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A worker is a process forked from one in which nothing was replayed. Its
// parent writes a byte for each pass that it shall do, and reads one when that
// is done; figures come back in memory that both have. For the memory passes
// there is a process each, since its memory is what counts.

#include "leakcheck/replay_run.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "leakcheck/replay_allocator.h"

namespace leakcheck {

namespace {

constexpr char kTime = 't';
constexpr char kTimeCalls = 'c';
constexpr char kSample = 's';
constexpr char kDone = 'd';

// What a worker writes and its parent reads. Samples follow.
struct Report {
  ReplayTimes times;
  uint64_t longest_call_ns;
  int create_error;  // errno
  ReplaySample samples[];
};

// Memory that a forked child shares with its parent.
class SharedReport {
 public:
  explicit SharedReport(size_t samples)
      : size_bytes_(sizeof(Report) + samples * sizeof(ReplaySample)) {
    void *ptr = mmap(nullptr, size_bytes_, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ptr == MAP_FAILED) {
      throw std::bad_alloc();
    }
    report_ = static_cast<Report *>(ptr);
  }
  ~SharedReport() {
    munmap(report_, size_bytes_);
  }
  SharedReport(const SharedReport &) = delete;
  SharedReport &operator=(const SharedReport &) = delete;

  Report *get() const {
    return report_;
  }

 private:
  const size_t size_bytes_;
  Report *report_;
};

// What a worker does for its commands.
class WorkerBody {
 public:
  WorkerBody(const ReplayProgram &program, const ReplaySettings &settings,
             const std::string &allocator, const std::vector<size_t> &sample_at,
             Report *report)
      : pass_(program, settings.is_concurrent),
        sample_at_(sample_at),
        operation_count_(program.operations.size()),
        report_(report) {
    if (!sample_at.empty()) {
      // Huge pages would make the figures depend on luck.
      prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
    idle_bytes_ = ReplayResidentBytes();
    allocator_ = MakeReplayAllocator(allocator, settings.heap_options);
    report->create_error = allocator_ == nullptr ? errno : 0;
  }

  bool Do(char command) {
    if (allocator_ == nullptr) {
      return false;
    }
    switch (command) {
      case kTime:
        report_->times = pass_.Time(allocator_.get());
        return true;
      case kTimeCalls:
        call_ns_.resize(operation_count_, UINT32_MAX);
        pass_.TimeCalls(allocator_.get(), call_ns_.data());
        report_->longest_call_ns = LongestCall();
        return true;
      case kSample:
        pass_.Sample(allocator_.get(), sample_at_.data(), sample_at_.size(),
                     idle_bytes_, report_->samples);
        return true;
      default:
        return false;
    }
  }

 private:
  // Not done, since what it needed was refused: it stays at its start.
  uint64_t LongestCall() const {
    uint32_t longest = 0;
    for (uint32_t ns : call_ns_) {
      longest = ns == UINT32_MAX ? longest : std::max(longest, ns);
    }
    return longest;
  }

  ReplayPass pass_;
  const std::vector<size_t> &sample_at_;
  const size_t operation_count_;
  Report *const report_;
  uint64_t idle_bytes_;
  std::unique_ptr<ReplayAllocator> allocator_;
  MappedVector<uint32_t> call_ns_;
};

class Worker {
 public:
  Worker(const ReplayProgram &program, const ReplaySettings &settings,
         std::string allocator, const std::vector<size_t> &sample_at)
      : allocator_(std::move(allocator)), report_(sample_at.size()) {
    int to_child[2];
    int to_parent[2];
    if (pipe(to_child) != 0 || pipe(to_parent) != 0) {
      throw std::bad_alloc();
    }
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      close(to_child[1]);
      close(to_parent[0]);
      Serve(to_child[0], to_parent[1], [&] {
        return std::make_unique<WorkerBody>(program, settings, allocator_,
                                            sample_at, report_.get());
      });
    }
    close(to_child[0]);
    close(to_parent[1]);
    to_child_ = to_child[1];
    from_child_ = to_parent[0];
  }
  ~Worker() {
    close(to_child_);  // The end of its commands.
    close(from_child_);
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }
  Worker(const Worker &) = delete;
  Worker &operator=(const Worker &) = delete;

  // Returns "" or what went wrong.
  std::string Do(char command) {
    char done = '\0';
    if (pid_ > 0 && write(to_child_, &command, 1) == 1 &&
        read(from_child_, &done, 1) == 1 && done == kDone) {
      return "";
    }
    int status = 0;
    if (pid_ <= 0 || waitpid(std::exchange(pid_, -1), &status, 0) < 0) {
      return absl::StrCat(allocator_, ": no process for it");
    }
    if (report_.get()->create_error != 0) {
      return absl::StrCat(allocator_, ": ",
                          strerror(report_.get()->create_error));
    }
    return WIFSIGNALED(status)
               ? absl::StrCat(allocator_, ": died of signal ", WTERMSIG(status))
               : absl::StrCat(allocator_, ": exited with ",
                              WEXITSTATUS(status));
  }

  const Report &report() const {
    return *report_.get();
  }
  const std::string &allocator() const {
    return allocator_;
  }

 private:
  template <typename MakeBody>
  [[noreturn]] static void Serve(int in, int out, const MakeBody &make_body) {
    const auto body = make_body();
    char command;
    while (read(in, &command, 1) == 1) {
      if (!body->Do(command) || write(out, &kDone, 1) != 1) {
        _exit(1);
      }
    }
    _exit(0);
  }

  const std::string allocator_;
  const SharedReport report_;
  pid_t pid_;
  int to_child_;
  int from_child_;
};

uint64_t Median(std::vector<uint64_t> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

uint64_t Less(uint64_t value, uint64_t taken_off) {
  return value > taken_off ? value - taken_off : 0;
}

struct Rounds {
  std::vector<uint64_t> cpu_ns;
  std::vector<uint64_t> wall_ns;
};

// The first worker is the loop that calls nothing.
std::string MeasureTimes(const ReplayProgram &program,
                         const ReplaySettings &settings,
                         std::vector<ReplayResult> *results) {
  const std::vector<size_t> no_samples;
  std::vector<std::unique_ptr<Worker>> workers;
  workers.push_back(
      std::make_unique<Worker>(program, settings, "loop", no_samples));
  for (const std::string &allocator : settings.allocators) {
    workers.push_back(
        std::make_unique<Worker>(program, settings, allocator, no_samples));
  }
  std::vector<Rounds> rounds(workers.size());
  for (int round = 0; round < settings.rounds; ++round) {
    for (const char command : {kTime, kTimeCalls}) {
      for (size_t i = 0; i < workers.size(); ++i) {
        const std::string wrong = workers[i]->Do(command);
        if (!wrong.empty()) {
          return wrong;
        }
        if (command == kTime) {
          rounds[i].cpu_ns.push_back(workers[i]->report().times.cpu_ns);
          rounds[i].wall_ns.push_back(workers[i]->report().times.wall_ns);
        }
      }
    }
  }
  const uint64_t loop_cpu_ns = Median(rounds[0].cpu_ns);
  const uint64_t loop_wall_ns = Median(rounds[0].wall_ns);
  for (size_t i = 1; i < workers.size(); ++i) {
    const Report &report = workers[i]->report();
    ReplayResult &result = (*results)[i - 1];
    result.cpu_ns = Less(Median(rounds[i].cpu_ns), loop_cpu_ns);
    result.wall_ns = Less(Median(rounds[i].wall_ns), loop_wall_ns);
    result.first_cpu_ns = Less(rounds[i].cpu_ns[0], loop_cpu_ns);
    result.longest_call_ns = report.longest_call_ns;
    result.refused_count = report.times.refused_count;
  }
  return "";
}

// Returns indices at equal distances, the last operation's, and that of the
// live peak.
std::vector<size_t> SamplePlaces(const ReplayProgram &program, size_t samples) {
  const size_t count = program.operations.size();
  std::vector<size_t> places = {program.peak_index};
  for (size_t i = 1; i <= samples; ++i) {
    const auto end = static_cast<size_t>(static_cast<unsigned __int128>(count) *
                                         i / samples);
    places.push_back(end == 0 ? 0 : end - 1);
  }
  std::sort(places.begin(), places.end());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  return places;
}

std::string MeasureMemory(const ReplayProgram &program,
                          const ReplaySettings &settings,
                          ReplayResult *result) {
  const std::vector<size_t> places = SamplePlaces(program, settings.samples);
  Worker worker(program, settings, result->allocator, places);
  const std::string wrong = worker.Do(kSample);
  if (!wrong.empty()) {
    return wrong;
  }
  const ReplaySample *samples = worker.report().samples;
  result->samples.assign(samples, samples + places.size());
  for (const ReplaySample &sample : result->samples) {
    result->footprint_bytes =
        std::max(result->footprint_bytes, sample.resident_bytes);
    result->longest_steps =
        std::max(result->longest_steps, sample.pieces.longest_steps);
  }
  return "";
}

}  // namespace

std::string RunReplay(const ReplayProgram &program,
                      const ReplaySettings &settings,
                      std::vector<ReplayResult> *out_results) {
  // A worker that died shows in what is read from it.
  signal(SIGPIPE, SIG_IGN);
  out_results->clear();
  for (const std::string &allocator : settings.allocators) {
    ReplayResult result;
    result.allocator = allocator;
    out_results->push_back(std::move(result));
  }
  try {
    std::string wrong = MeasureTimes(program, settings, out_results);
    for (ReplayResult &result : *out_results) {
      if (wrong.empty()) {
        wrong = MeasureMemory(program, settings, &result);
      }
    }
    return wrong;
  } catch (const std::bad_alloc &) {
    return "no memory, processes or pipes for the replay";
  }
}

}  // namespace leakcheck
