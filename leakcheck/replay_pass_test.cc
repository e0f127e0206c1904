// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/replay_pass.h"

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/replay_allocator.h"
#include "leakcheck/replay_program.h"
#include "leakcheck/replay_testing.h"

namespace leakcheck {
namespace {

// Notes each call, and what is wrong with it; refuses some.
class StrictAllocator : public ReplayAllocator {
 public:
  explicit StrictAllocator(bool resets = false) : resets_(resets) {
  }
  ~StrictAllocator() override {
    EXPECT_EQ(sizes_.size(), 0u) << "a pass must free all";
  }
  StrictAllocator(const StrictAllocator &) = delete;
  StrictAllocator &operator=(const StrictAllocator &) = delete;

  void *Alloc(size_t size_bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    calls_ += "a" + std::to_string(size_bytes) + " ";
    return size_bytes == refused_size_ ? nullptr : Add(size_bytes);
  }
  // Always moves, so that who has the old address fails.
  void *Resize(void *ptr, size_t size_bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    calls_ += "r" + std::to_string(sizes_.at(ptr)) + ":" +
              std::to_string(size_bytes) + " ";
    if (size_bytes == refused_size_) {
      return nullptr;
    }
    void *moved = Add(size_bytes);
    Remove(ptr);
    return moved;
  }
  void Free(void *ptr) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ptr != nullptr) {
      calls_ += "f" + std::to_string(sizes_.at(ptr)) + " ";
      Remove(ptr);
    }
  }
  size_t UsableBytes(void *ptr) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return sizes_.at(ptr) + 4;
  }
  bool Reset() override {
    while (resets_ && !sizes_.empty()) {
      Remove(sizes_.begin()->first);
    }
    calls_ += "| ";
    return resets_;
  }
  bool GetPieces(ReplayPieces *out_pieces) override {
    *out_pieces = {1, 2, 3, 4};
    return resets_;
  }

  void Refuse(size_t size_bytes) {
    refused_size_ = size_bytes;
  }
  const std::string &calls() const {
    return calls_;
  }

 private:
  void *Add(size_t size_bytes) {
    void *ptr = malloc(size_bytes + 1);
    sizes_[ptr] = size_bytes;
    return ptr;
  }
  void Remove(void *ptr) {
    sizes_.erase(ptr);
    free(ptr);
  }

  const bool resets_;
  std::mutex mutex_;
  std::map<void *, size_t> sizes_;
  size_t refused_size_ = SIZE_MAX;
  std::string calls_;
};

ReplayProgram Compile(const TestLog &log, bool is_concurrent = false) {
  ReplayProgram program;
  ReplayCompileOptions options;
  options.is_concurrent = is_concurrent;
  EXPECT_EQ(CompileReplay(log.path(), options, &program), "");
  return program;
}

void Write(TestLog *log) {
  log->Alloc(0x1000, 100).Alloc(0x2000, 50).Resize(0x1000, 200).Free(0x2000);
  log->Alloc(0x3000, 10).Free(0x1000);
}

TEST(ReplayPassTest, MakesTheLogsCallsInOrder) {
  TestLog log("pass");
  Write(&log);
  const ReplayProgram program = Compile(log);
  StrictAllocator allocator;
  ReplayPass pass(program, false);
  EXPECT_EQ(pass.Time(&allocator).refused_count, 0u);
  EXPECT_EQ(allocator.calls(), "a100 a50 r100:200 f50 a10 f200 | f10 ");
  StrictAllocator resetting(true);
  // Each pass begins with nothing.
  pass.Time(&resetting);
  pass.Time(&resetting);
  EXPECT_EQ(
      resetting.calls(),
      "a100 a50 r100:200 f50 a10 f200 | a100 a50 r100:200 f50 a10 f200 | ");
}

TEST(ReplayPassTest, WhatIsRefusedIsCountedAndNeverFreed) {
  TestLog log("pass");
  Write(&log);
  for (const bool is_concurrent : {false, true}) {
    const ReplayProgram program = Compile(log, is_concurrent);
    ReplayPass pass(program, is_concurrent);
    const struct {
      size_t size_bytes;
      const char *calls;
    } kCases[] = {{100, "a100 a50 f50 a10 | f10 "},
                  {200, "a100 a50 r100:200 f50 a10 f100 | f10 "},
                  {10, "a100 a50 r100:200 f50 a10 f200 | "}};
    for (const auto &refused : kCases) {
      StrictAllocator allocator;
      allocator.Refuse(refused.size_bytes);
      EXPECT_EQ(pass.Time(&allocator).refused_count, 1u);
      EXPECT_EQ(allocator.calls(), refused.calls);
    }
  }
}

TEST(ReplayPassTest, EachCallsShortestTimeIsKept) {
  TestLog log("pass");
  Write(&log);
  const ReplayProgram program = Compile(log);
  StrictAllocator allocator;
  ReplayPass pass(program, false);
  std::vector<uint32_t> call_ns(program.operations.size(), UINT32_MAX);
  pass.TimeCalls(&allocator, call_ns.data());
  for (const uint32_t ns : call_ns) {
    EXPECT_LT(ns, UINT32_MAX);
    EXPECT_GT(ns, 0u);
  }
  std::fill(call_ns.begin(), call_ns.end(), 0);
  pass.TimeCalls(&allocator, call_ns.data());
  EXPECT_EQ(call_ns, std::vector<uint32_t>(call_ns.size(), 0));
}

TEST(ReplayPassTest, SamplesSayWhatIsLive) {
  TestLog log("pass");
  Write(&log);
  for (const bool is_concurrent : {false, true}) {
    const ReplayProgram program = Compile(log, is_concurrent);
    ReplayPass pass(program, is_concurrent);
    for (const bool resets : {false, true}) {
      StrictAllocator allocator(resets);
      const size_t places[] = {1, 2, 5};
      ReplaySample samples[3] = {};
      pass.Sample(&allocator, places, 3, 0, samples);
      EXPECT_EQ(samples[0].operation, 2u);
      EXPECT_EQ(samples[0].time_ns, 2u);
      EXPECT_EQ(samples[0].requested_bytes, 150u);
      EXPECT_EQ(samples[0].usable_bytes, 158u);
      EXPECT_EQ(samples[1].requested_bytes, 250u);
      EXPECT_EQ(samples[2].operation, 6u);
      EXPECT_EQ(samples[2].requested_bytes, 10u);
      EXPECT_EQ(samples[2].usable_bytes, 14u);
      EXPECT_GT(samples[2].resident_bytes, 0u);
      EXPECT_EQ(samples[2].has_pieces, resets);
      EXPECT_EQ(samples[2].pieces.largest_free_bytes, 3u);
    }
  }
}

TEST(ReplayPassTest, RefusedBlocksAreNotInTheSums) {
  TestLog log("pass");
  Write(&log);
  const ReplayProgram program = Compile(log);
  ReplayPass pass(program, false);
  StrictAllocator allocator;
  allocator.Refuse(200);
  const size_t places[] = {2, 5};
  ReplaySample samples[2] = {};
  pass.Sample(&allocator, places, 2, 0, samples);
  EXPECT_EQ(samples[0].requested_bytes, 150u);
  EXPECT_EQ(samples[1].requested_bytes, 10u);
}

// What is resident is what was written to, of a heap with its tables.
TEST(ReplayPassTest, ResidentBytesAreThoseOfTheAllocator) {
  TestLog log("pass");
  log.Alloc(0x1000000, 20 << 20);
  const ReplayProgram program = Compile(log);
  ReplayPass pass(program, false);
  const uint64_t idle_bytes = ReplayResidentBytes();
  const auto allocator = MakeReplayAllocator("tlsf", heap_options_t{});
  ASSERT_NE(allocator, nullptr);
  const size_t place = 0;
  ReplaySample sample = {};
  pass.Sample(allocator.get(), &place, 1, idle_bytes, &sample);
  EXPECT_GE(sample.resident_bytes, uint64_t{20} << 20);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(sample.resident_bytes, uint64_t{21} << 20);
#endif
  EXPECT_EQ(sample.usable_bytes, uint64_t{20} << 20);
  EXPECT_TRUE(sample.has_pieces);
}

// Each block goes through all threads: allocated by one, resized by the next,
// freed by a third.
TEST(ReplayPassTest, ThreadsWaitForWhatTheyNeed) {
  constexpr uint64_t kThreads = 4;
  TestLog log("pass", kThreads);
  for (uint64_t i = 0; i < 3000; ++i) {
    const uint64_t address = 0x1000 * (1 + i % 7);
    log.Alloc(address, i % 50, i % kThreads);
    log.Resize(address, i % 60, (i + 1) % kThreads);
    if (i + 5 < 3000) {
      log.Free(address, (i + 2) % kThreads);
    }
  }
  const ReplayProgram program = Compile(log, true);
  EXPECT_EQ(program.thread_count, kThreads);
  ReplayPass pass(program, true);
  StrictAllocator allocator;
  EXPECT_EQ(pass.Time(&allocator).refused_count, 0u);
  for (const std::string &name : ReplayAllocatorNames()) {
    const auto real = MakeReplayAllocator(name, heap_options_t{});
    ASSERT_NE(real, nullptr);
    EXPECT_EQ(pass.Time(real.get()).refused_count, 0u) << name;
    const size_t place = program.operations.size() - 1;
    ReplaySample sample = {};
    pass.Sample(real.get(), &place, 1, 0, &sample);
    EXPECT_EQ(sample.operation, program.operations.size());
    EXPECT_EQ(sample.has_pieces, name != "malloc");
  }
}

TEST(ReplayPassTest, UnknownAllocatorsAreRefused) {
  EXPECT_EQ(MakeReplayAllocator("worst_fit", heap_options_t{}), nullptr);
  EXPECT_EQ(errno, 0);
  heap_options_t options = {};
  options.granule_bytes = 24;
  EXPECT_EQ(MakeReplayAllocator("tlsf", options), nullptr);
  EXPECT_EQ(errno, EINVAL);
}

}  // namespace
}  // namespace leakcheck
