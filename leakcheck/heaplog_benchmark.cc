// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does an event cost a recorded program, in time and in bytes on disk, and
// how fast does a tool get it back? The floor for writing is the clock that the
// caller reads (BM_Clock), the floor for reading is the memory it fills.
//
// The events are those of a program that keeps some thousand blocks: sizes by a
// power law, most blocks short-lived, times some hundred nanoseconds apart, a
// few hundred call stacks.

#include <benchmark/benchmark.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "leakcheck/heaplog_reader.h"
#include "leakcheck/heaplog_writer.h"

namespace {

constexpr uint64_t kStartNs = 1000000;
constexpr size_t kEvents = 1 << 20;

std::string LogPath() {
  const char *folder = getenv("TEST_TMPDIR");
  return std::string(folder != nullptr ? folder : "/tmp") + "/benchmark." +
         std::to_string(getpid()) + ".heaplog";
}

uint64_t UsableBytes(uint64_t size) {
  uint64_t step = 16;
  while (size > step * 16) {
    step *= 2;
  }
  return (size + step - 1) / step * step;
}

std::vector<heaplog_event_t> MakeEvents() {
  std::mt19937_64 random(1);
  std::vector<heaplog_event_t> events;
  std::vector<uint64_t> live;
  uint64_t time = kStartNs;
  for (size_t i = 0; i < kEvents; i++) {
    heaplog_event_t event = {};
    uint64_t bits = random();
    event.time_ns = time += 50 + bits % 400;
    if (!live.empty() && (bits >> 10) % 1000 < 500) {
      // Mostly a young block.
      size_t age = static_cast<size_t>((bits >> 20) % 64);
      age = (bits >> 30) % 10 == 0 ? (bits >> 34) % live.size() : age;
      size_t which = live.size() - 1 - age % live.size();
      event.kind = HEAPLOG_FREE;
      event.address = live[which];
      live.erase(live.begin() + static_cast<ptrdiff_t>(which));
    } else {
      event.kind = HEAPLOG_ALLOC;
      event.size_bytes = 8 + ((bits >> 20) % 64) * (bits % 8 == 0 ? 37 : 4);
      event.usable_bytes = UsableBytes(event.size_bytes);
      // Spans of 64 KiB, by size.
      event.address = 0x555555600000 +
                      UsableBytes(event.size_bytes) / 16 * 65536 +
                      ((bits >> 34) % 1000) * event.usable_bytes;
      event.stack_id = 1 + (bits >> 50) % ((bits >> 26) % 4 == 0 ? 300 : 8);
      live.push_back(event.address);
    }
    events.push_back(event);
  }
  return events;
}

const std::vector<heaplog_event_t> &Events() {
  static const std::vector<heaplog_event_t> *events =
      new std::vector<heaplog_event_t>(MakeEvents());
  return *events;
}

bool Append(heaplog_stream_t *stream, const heaplog_event_t &event,
            uint64_t time_ns) {
  return event.kind == HEAPLOG_ALLOC
             ? heaplog_append_alloc(stream, time_ns, event.address,
                                    event.size_bytes, event.usable_bytes,
                                    event.stack_id)
             : heaplog_append_free(stream, time_ns, event.address, 0);
}

heaplog_writer_t *OpenWriter(const std::string &path) {
  heaplog_writer_options_t options = {};
  options.path = path.c_str();
  options.start_monotonic_ns = kStartNs;
  options.page_bytes = 4096;
  heaplog_writer_t *writer = nullptr;
  return heaplog_writer_open(&options, &writer) == 0 ? writer : nullptr;
}

void BM_Clock(benchmark::State &state) {
  timespec now;
  for (auto _ : state) {
    clock_gettime(CLOCK_MONOTONIC, &now);
    benchmark::DoNotOptimize(now);
  }
}
BENCHMARK(BM_Clock);

// An iteration is one event; the disk space is given back now and then.
void BM_Append(benchmark::State &state) {
  const std::vector<heaplog_event_t> &events = Events();
  const std::string path = LogPath();
  heaplog_writer_t *writer = nullptr;
  heaplog_stream_t *stream = nullptr;
  size_t i = 0;
  uint64_t bytes = 0;
  uint64_t lost = 0;
  uint64_t files = 0;
  for (auto _ : state) {
    if (i == 0) {
      state.PauseTiming();
      heaplog_writer_close(writer);
      writer = OpenWriter(path);
      if (writer == nullptr ||
          heaplog_stream_open(writer, kStartNs, 1, "main", &stream) != 0) {
        state.SkipWithError("cannot open the log");
        break;
      }
      state.ResumeTiming();
    }
    lost += !Append(stream, events[i], events[i].time_ns);
    if (++i == kEvents) {
      state.PauseTiming();
      struct stat stat = {};
      ::stat(path.c_str(), &stat);
      bytes += static_cast<uint64_t>(stat.st_size);
      files++;
      i = 0;
      state.ResumeTiming();
    }
  }
  heaplog_writer_close(writer);
  unlink(path.c_str());
  state.SetItemsProcessed(state.iterations());
  if (lost != 0) {
    state.SkipWithError("events were lost");
  }
  if (files != 0) {
    state.counters["bytes/event"] =
        static_cast<double>(bytes) / static_cast<double>(files * kEvents);
  }
}
BENCHMARK(BM_Append);

heaplog_writer_t *shared_writer;

void OpenShared(const benchmark::State &) {
  shared_writer = OpenWriter(LogPath());
}

void CloseShared(const benchmark::State &) {
  heaplog_writer_close(shared_writer);
  unlink(LogPath().c_str());
}

// Threads with a stream each. An iteration is one event of one thread.
void BM_AppendThreads(benchmark::State &state) {
  const std::vector<heaplog_event_t> &events = Events();
  heaplog_stream_t *stream = nullptr;
  if (shared_writer == nullptr ||
      heaplog_stream_open(shared_writer, kStartNs, 1, "t", &stream) != 0) {
    state.SkipWithError("cannot open a stream");
    return;
  }
  size_t i = 0;
  uint64_t lap_ns = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        Append(stream, events[i], events[i].time_ns + lap_ns));
    if (++i == kEvents) {
      i = 0;
      lap_ns += events.back().time_ns;
    }
  }
  heaplog_stream_close(stream, kStartNs);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_AppendThreads)
    ->Setup(OpenShared)
    ->Teardown(CloseShared)
    ->Threads(1)
    ->Threads(2)
    ->UseRealTime();

// A thread that starts, allocates a little and ends.
void BM_StreamOpenClose(benchmark::State &state) {
  const std::string path = LogPath();
  heaplog_writer_t *writer = OpenWriter(path);
  for (auto _ : state) {
    heaplog_stream_t *stream = nullptr;
    if (heaplog_stream_open(writer, kStartNs, 1, "t", &stream) != 0) {
      state.SkipWithError("cannot open a stream");
      break;
    }
    heaplog_append_free(stream, kStartNs, 16, 0);
    heaplog_stream_close(stream, kStartNs);
  }
  heaplog_writer_close(writer);
  unlink(path.c_str());
}
BENCHMARK(BM_StreamOpenClose);

// Reads a log of kEvents events of so many streams, `batch` at a time. An
// iteration is the whole log, opened anew.
void BM_Read(benchmark::State &state) {
  const std::vector<heaplog_event_t> &events = Events();
  const std::string path = LogPath();
  const size_t num_streams = static_cast<size_t>(state.range(0));
  std::vector<heaplog_event_t> batch(static_cast<size_t>(state.range(1)));
  heaplog_writer_t *writer = OpenWriter(path);
  std::vector<heaplog_stream_t *> streams(num_streams);
  for (heaplog_stream_t *&stream : streams) {
    if (heaplog_stream_open(writer, kStartNs, 1, "t", &stream) != 0) {
      state.SkipWithError("cannot open a stream");
      return;
    }
  }
  for (size_t i = 0; i < kEvents; i++) {
    // Threads take turns of 8 events.
    Append(streams[i / 8 % num_streams], events[i], events[i].time_ns);
  }
  heaplog_writer_close(writer);
  for (auto _ : state) {
    heaplog_reader_t *reader = nullptr;
    if (heaplog_reader_open(path.c_str(), &reader, nullptr) != 0) {
      state.SkipWithError("cannot read the log");
      break;
    }
    size_t total = 0;
    size_t count;
    do {
      count = heaplog_reader_read(reader, batch.data(), batch.size());
      benchmark::DoNotOptimize(batch.data());
      total += count;
    } while (count == batch.size());
    if (total != kEvents || heaplog_reader_status(reader, nullptr) != 0) {
      state.SkipWithError("the log is not whole");
    }
    heaplog_reader_close(reader);
  }
  unlink(path.c_str());
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kEvents));
}
BENCHMARK(BM_Read)
    ->ArgNames({"streams", "batch"})
    ->Args({1, 1})
    ->Args({1, 512})
    ->Args({8, 512})
    ->Args({100, 512});

}  // namespace
