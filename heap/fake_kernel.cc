// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/fake_kernel.h"

#include <sys/mman.h>

#include <cerrno>

#include "gtest/gtest.h"
#include "heap/heap_patterns.h"
#include "heap/kernel.h"

namespace heap_testing {

FakeKernel fake;

namespace {

void *FakeMoveBreak(intptr_t delta_bytes) {
  if (fake.Fails(fake.refuse_break && delta_bytes != 0)) {
    return nullptr;
  }
  if (delta_bytes != 0) {
    ++fake.break_moves;
    if (delta_bytes > 0 && fake.before_break_rise) {
      fake.before_break_rise();
    }
  }
  return heap_kernel_default.move_break(delta_bytes);
}

void *FakeMap(size_t size_bytes, bool reserve_only) {
  if (fake.Fails(size_bytes > fake.largest_map_bytes)) {
    return nullptr;
  }
  fake.mapped_bytes += size_bytes;
  return heap_kernel_default.map(size_bytes, reserve_only);
}

bool FakeCommit(void *ptr, size_t size_bytes) {
  return !fake.Fails(fake.refuse_commit) &&
         heap_kernel_default.commit(ptr, size_bytes);
}

bool FakeResize(void *ptr, size_t old_bytes, size_t new_bytes) {
  if (fake.Fails(false) ||
      !heap_kernel_default.resize(ptr, old_bytes, new_bytes)) {
    return false;
  }
  fake.mapped_bytes += new_bytes - old_bytes;
  return true;
}

// A failed move takes the target with it, and a stranger comes in its place.
bool FakeMove(void *ptr, size_t old_bytes, void *target, size_t new_bytes) {
  if (fake.Fails(false) ||
      !heap_kernel_default.move(ptr, old_bytes, target, new_bytes)) {
    munmap(target, new_bytes);
    fake.mapped_bytes -= new_bytes;
    void *stranger = mmap(target, new_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    fake.strangers.push_back({static_cast<unsigned char *>(stranger), 4096});
    Fill(stranger, 4096, 4096);
    return false;
  }
  fake.mapped_bytes -= old_bytes;
  return true;
}

size_t FakePageBytes() {
  return fake.page_bytes;
}

// The kernel would round the length up to a page.
bool FakeDiscard(void *ptr, size_t size_bytes) {
  EXPECT_EQ(reinterpret_cast<uintptr_t>(ptr) % fake.page_bytes, 0u);
  EXPECT_EQ(size_bytes % fake.page_bytes, 0u);
  if (fake.Fails(fake.refuse_discard)) {
    errno = EINVAL;
    return false;
  }
  fake.discarded_bytes += size_bytes;
  return heap_kernel_default.discard(ptr, size_bytes);
}

bool FakeUnmap(void *ptr, size_t size_bytes) {
  if (fake.Fails(fake.refuse_unmap)) {
    fake.lost_bytes += size_bytes;
    return false;
  }
  fake.mapped_bytes -= size_bytes;
  return heap_kernel_default.unmap(ptr, size_bytes);
}

bool FakeGuard(void *ptr, size_t size_bytes, bool on) {
  return !(on && fake.Fails(fake.refuse_guard)) &&
         heap_kernel_default.guard(ptr, size_bytes, on);
}

bool FakeForbid(void *ptr, size_t size_bytes) {
  if (fake.Fails(fake.forbidden_pages >= fake.most_forbidden_pages)) {
    return false;
  }
  ++fake.forbidden_pages;
  return heap_kernel_default.forbid(ptr, size_bytes);
}

constexpr heap_kernel_t kFakeKernel = {
    FakeMoveBreak, FakeMap,     FakeCommit, FakeResize, FakeMove,
    FakePageBytes, FakeDiscard, FakeUnmap,  FakeGuard,  FakeForbid,
};

}  // namespace

void UseFakeKernel() {
  fake = FakeKernel();
  heap_kernel = &kFakeKernel;
}

}  // namespace heap_testing
