// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "slab/slab_testing.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#define MODEL_CHECK(condition)                                          \
  do {                                                                  \
    if (!(condition)) {                                                 \
      std::fprintf(stderr, "%s:%d: cache differs from its model: %s\n", \
                   __FILE__, __LINE__, #condition);                     \
      std::abort();                                                     \
    }                                                                   \
  } while (false)

namespace slab_testing {
namespace {

constexpr size_t kPatternBytes = 512;  // At both ends of an object.

unsigned char PatternByte(uint64_t id, size_t at) {
  return static_cast<unsigned char>((id * 31 + at * 7 + (at >> 8)) ^ (id >> 8));
}

void Fill(unsigned char *ptr, size_t size, uint64_t id) {
  for (size_t i = 0; i < size && i < kPatternBytes; ++i) {
    ptr[i] = PatternByte(id, i);
    ptr[size - 1 - i] = PatternByte(id, size - 1 - i);
  }
}

bool IsFilled(const unsigned char *ptr, size_t size, uint64_t id) {
  for (size_t i = 0; i < size && i < kPatternBytes; ++i) {
    if (ptr[i] != PatternByte(id, i) ||
        ptr[size - 1 - i] != PatternByte(id, size - 1 - i)) {
      return false;
    }
  }
  return true;
}

}  // namespace

uint64_t Seed() {
  const char *text = std::getenv("SLAB_TEST_SEED");
  const uint64_t seed =
      text == nullptr ? 4711 : std::strtoull(text, nullptr, 0);
  std::printf("SLAB_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  return seed;
}

slab_options_t Options(size_t object_bytes, size_t align_bytes) {
  slab_options_t options = {};
  options.name = "test";
  options.object_bytes = object_bytes;
  options.align_bytes = align_bytes;
  return options;
}

slab_stats_t Stats(slab_cache_t *cache) {
  slab_stats_t stats;
  slab_stats(cache, &stats);
  return stats;
}

std::vector<void *> AllocMany(slab_cache_t *cache, size_t count) {
  std::vector<void *> objects(count);
  for (void *&object : objects) {
    object = slab_alloc(cache);
  }
  return objects;
}

slab_source_t FakeSource::Get() {
  return {Alloc, Free, this};
}

void FakeSource::FailFrom(int from, int count) {
  calls_ = 0;
  failures_ = 0;
  fail_from_ = from;
  fail_count_ = count;
}

void *FakeSource::Alloc(void *context, size_t size_bytes, size_t align_bytes) {
  auto *source = static_cast<FakeSource *>(context);
  ++source->calls_;
  if (source->calls_ >= source->fail_from_ &&
      source->calls_ - source->fail_from_ < source->fail_count_) {
    ++source->failures_;
    return nullptr;
  }
  void *ptr = nullptr;
  if (posix_memalign(&ptr, align_bytes, size_bytes) != 0) {
    return nullptr;
  }
  std::memset(ptr, 0x5a, size_bytes < 65536 ? size_bytes : 65536);
  source->blocks_[ptr] = size_bytes;
  source->live_bytes_ += size_bytes;
  if (source->live_bytes_ > source->most_bytes_) {
    source->most_bytes_ = source->live_bytes_;
  }
  return ptr;
}

void FakeSource::Free(void *context, void *ptr, size_t size_bytes) {
  auto *source = static_cast<FakeSource *>(context);
  auto block = source->blocks_.find(ptr);
  MODEL_CHECK(block != source->blocks_.end());
  MODEL_CHECK(block->second == size_bytes);
  source->blocks_.erase(block);
  source->live_bytes_ -= size_bytes;
  std::free(ptr);
}

CacheModel::CacheModel(const slab_options_t &options)
    : cache_(slab_cache_create(&options)),
      object_bytes_(options.object_bytes),
      align_bytes_(options.align_bytes == 0 ? 1 : options.align_bytes) {
  MODEL_CHECK(cache_ != nullptr);
}

CacheModel::~CacheModel() {
  FreeAll();
  Check();
  MODEL_CHECK(slab_cache_destroy(cache_, 0) == 0);
}

void CacheModel::Add(void *ptr, bool is_zero) {
  const auto start = reinterpret_cast<uintptr_t>(ptr);
  auto *bytes = static_cast<unsigned char *>(ptr);
  MODEL_CHECK(start % align_bytes_ == 0);
  const auto next = ids_.lower_bound(start);
  MODEL_CHECK(next == ids_.end() || next->first - start >= object_bytes_);
  MODEL_CHECK(next == ids_.begin() ||
              start - std::prev(next)->first >= object_bytes_);
  for (size_t i = 0; is_zero && i < object_bytes_; ++i) {
    MODEL_CHECK(bytes[i] == 0);
  }
  Fill(bytes, object_bytes_, ++next_id_);
  ids_.emplace_hint(next, start, next_id_);
  objects_.push_back({bytes, next_id_});
}

bool CacheModel::Alloc() {
  errno = 0;
  void *ptr = slab_alloc(cache_);
  if (ptr == nullptr) {
    MODEL_CHECK(errno == ENOMEM);
    return false;
  }
  Add(ptr, false);
  return true;
}

bool CacheModel::AllocZeroed() {
  void *ptr = slab_alloc_zeroed(cache_);
  if (ptr != nullptr) {
    Add(ptr, true);
  }
  return ptr != nullptr;
}

bool CacheModel::AllocBulk(size_t count) {
  std::vector<void *> ptrs(count + 1, this);
  if (slab_alloc_bulk(cache_, count, ptrs.data()) != 0) {
    return false;
  }
  MODEL_CHECK(ptrs[count] == this);
  ptrs.pop_back();
  for (void *ptr : ptrs) {
    Add(ptr, false);
  }
  return true;
}

void CacheModel::VerifyAndForget(size_t index) {
  const Object object = objects_[index];
  MODEL_CHECK(IsFilled(object.ptr, object_bytes_, object.id));
  MODEL_CHECK(ids_.erase(reinterpret_cast<uintptr_t>(object.ptr)) == 1);
  objects_[index] = objects_.back();
  objects_.pop_back();
}

void CacheModel::Free(size_t index) {
  if (objects_.empty()) {
    return;
  }
  index %= objects_.size();
  void *ptr = objects_[index].ptr;
  VerifyAndForget(index);
  errno = EDOM;
  slab_free(cache_, ptr);
  MODEL_CHECK(errno == EDOM);
}

void CacheModel::FreeBulk(size_t index, size_t count) {
  std::vector<void *> ptrs;
  while (count-- != 0 && !objects_.empty()) {
    const size_t at = index % objects_.size();
    ptrs.push_back(objects_[at].ptr);
    if (count % 5 == 0) {
      ptrs.push_back(nullptr);
    }
    VerifyAndForget(at);
  }
  slab_free_bulk(cache_, ptrs.size(), ptrs.data());
}

void CacheModel::FreeAll() {
  while (!objects_.empty()) {
    Free(objects_.size() - 1);
  }
}

void CacheModel::Reap() {
  slab_reap(cache_);
}

void CacheModel::Check() const {
  const char *broken = slab_check(cache_);
  if (broken != nullptr) {
    std::fprintf(stderr, "slab_check: %s\n", broken);
    std::abort();
  }
  size_t num_seen = 0;
  auto visit = [&](void *object) {
    ++num_seen;
    return ids_.count(reinterpret_cast<uintptr_t>(object)) == 1;
  };
  MODEL_CHECK(slab_walk(
      cache_,
      [](void *context, void *object) {
        return (*static_cast<decltype(visit) *>(context))(object);
      },
      &visit));
  MODEL_CHECK(num_seen == objects_.size());
  slab_stats_t stats;
  slab_stats(cache_, &stats);
  MODEL_CHECK(stats.num_live == objects_.size());
  MODEL_CHECK(stats.num_live + stats.num_cached + stats.num_free ==
              stats.capacity);
  MODEL_CHECK(stats.hit_rate >= 0 && stats.hit_rate <= 1);
  for (const Object &object : objects_) {
    MODEL_CHECK(IsFilled(object.ptr, object_bytes_, object.id));
  }
}

}  // namespace slab_testing
